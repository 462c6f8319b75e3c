"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket, ended with them.

    server = PostgresServer(folder); server.start(); url = server.new_database()

PostgreSQL refuses to run as root, so it is then run as the user that its package has made. It does not
sync: what it has committed survives its own kill, but not a power cut. Knows no table.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import psycopg

START_S = 30.0
_FOLDERS = [Path("/usr/lib/postgresql")]


def binary(name: str) -> str:
    """A program of PostgreSQL: Debian keeps them off the path."""
    kept = [path for folder in _FOLDERS for path in folder.glob(f"*/bin/{name}")]
    versions = sorted(kept, key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    assert found, f"{name} is not installed; .ci/apt-packages.txt names the package"
    return found


class PostgresServer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._user = "postgres" if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    def start(self) -> None:
        """A cluster where there is none, then the server; returns when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        if not self._data.exists():
            encoding = ("--encoding=UTF8", "--locale=C")  # whatever the language of this machine
            self._run(
                "initdb",
                "--auth=trust",
                "--username=postgres",
                "--no-sync",
                *encoding,
                f"--pgdata={self._data}",
            )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": "60",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary("postgres"), "-D", str(self._data), *options],
                user=self._user,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self._wait()

    def url(self, schema: str = "public") -> str:
        return f"postgresql://postgres@/postgres?host={self._folder}&options=-csearch_path%3D{schema}"

    def new_database(self) -> str:
        """The address of an empty one: a schema of its own, for a database takes 300 files."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return self.url(name)

    def kill(self) -> None:
        """As a crash does: connections break, and what is not committed is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_S)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url()).close()
                return
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([binary(name), *arguments], user=self._user, cwd="/", check=True, capture_output=True)
