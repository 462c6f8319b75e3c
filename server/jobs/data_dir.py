"""DATA_DIR: which folders and files lie in it, and that one server alone uses it.

    jobs.sqlite3   the records of jobs (server/jobs/store.py)
    bodies/        request bodies and photos of jobs that have not ended (server/jobs/files.py)
    media/         finished pictures
    compile-cache/ what compilers have made of the model, for the next start (server/engines.py)
    server-id      this server's name among several; made when first asked for
    lock           held by the server as long as it runs

The lock is the kernel's (flock): it ends with the process, however the process ends. Knows
nothing of what is inside the files.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from pulid.errors import SetupError
from server.jobs.files import sync_folder


class DataDirUnusable(SetupError):
    code = "data_dir_unusable"


class DataDir:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "jobs.sqlite3"
        self.bodies = root / "bodies"
        self.media = root / "media"
        self._lock: int | None = None

    def open(self) -> None:
        """Create what is missing and take the lock. Raises DataDirUnusable."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._locked()
            self._create_folders()
        except OSError as exc:
            self.close()
            raise DataDirUnusable(
                f"The data folder {self.root} cannot be used: {exc.strerror or exc}. Give the server's user "
                "write access to it on a disk with room, or choose another folder with DATA_DIR."
            ) from exc

    def server_id(self) -> str:
        """The same through all lives of the server that has this folder. Raises DataDirUnusable."""
        path = self.root / "server-id"
        try:
            if not path.exists():
                temporary = path.with_suffix(".tmp")
                temporary.write_text(secrets.token_hex(16))
                temporary.replace(path)
            return path.read_text().strip()
        except OSError as exc:
            raise DataDirUnusable(f"The file {path} cannot be used: {exc.strerror or exc}.") from exc

    def close(self) -> None:
        """Let another server have the folder. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        # The file is never deleted: two servers could then hold locks on two files of one name.
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(descriptor)
            raise DataDirUnusable(
                f"Another server uses the data folder {self.root}. Stop it, or give this one a folder of its "
                "own with DATA_DIR."
            ) from exc
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _create_folders(self) -> None:
        for folder in (self.bodies, self.media):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)  # also where it existed, and whatever the umask says
        sync_folder(self.root)
