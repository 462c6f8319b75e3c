"""Several servers over one database and one folder, each with two workers; any of them may be killed.

Knows processes, the wire, and the tables of the database, which it only reads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import dict_row

from fakes import Script
from live_server import HERE, ServerProcess, staging_flags, text_of

LEASE_S = 2.0
PROGRAM = HERE / "cluster" / "cluster_server.py"


class FrontEnds:
    def __init__(self, folder: Path, database: str, script: Script, settings: Mapping[str, object]) -> None:
        self._folder = folder
        (folder / "shared").mkdir(exist_ok=True)
        self._database = database
        self._script = script
        self._settings = settings
        self.servers: dict[str, ServerProcess] = {}

    def start(self, name: str, *, wait: bool = True) -> ServerProcess:
        """Also a later life of one that has ended: it has the same data folder."""
        settings = {
            "port": 0,
            "profile": "tiny",
            "data_dir": self._folder / name,
            "database_url": self._database,
            "media_url": f"file://{self._folder}/shared",
            **self._settings,
        }
        flags = [f"--{key.replace('_', '-')}={text_of(value)}" for key, value in settings.items()]
        staging = staging_flags(self._script, instant=False, photo_hosts={})
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        program = ["env", f"PYTHONPATH={path}", sys.executable, str(PROGRAM), f"--lease-s={LEASE_S}"]
        command = [*program, *staging, "serve", *flags]
        server = ServerProcess(
            command, data_dir=self._folder / name, log=self._folder / f"{name}-{time.monotonic_ns()}.log"
        )
        self.servers[name] = server
        if wait:
            server.wait_until_listening()
            server.wait_until_ready()
        return server

    def workers(self, name: str) -> list[psutil.Process]:
        """Processes of its engines; a worker is what loads one."""
        try:
            return [
                child
                for child in psutil.Process(self.servers[name].pid).children()
                if any("spawn_main" in part for part in child.cmdline())
            ]
        except psutil.NoSuchProcess:
            return []

    def rows(self) -> dict[str, dict[str, object]]:
        with psycopg.connect(self._database, row_factory=dict_row) as connection:
            return {row["id"]: row for row in connection.execute("SELECT * FROM jobs ORDER BY number")}

    def shared_files(self, kind: str) -> list[Path]:
        return list((self._folder / "shared" / kind).iterdir())

    def clean_up(self) -> None:
        for server in self.servers.values():
            server.clean_up()


@contextmanager
def front_ends(
    folder: Path, database: str, script: Script, names: tuple[str, ...] = ("one", "two"), **settings: object
) -> Iterator[FrontEnds]:
    """All of them ready. Whatever still runs at the end is killed."""
    ends = FrontEnds(folder, database, script, settings)
    try:
        for name in names:
            ends.start(name, wait=False)
        for server in ends.servers.values():
            server.wait_until_listening()
            server.wait_until_ready()
        yield ends
    finally:
        ends.clean_up()
