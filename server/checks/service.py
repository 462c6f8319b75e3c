"""What the server itself needs: a data folder with room, and callers who are let in or kept out.

Changes nothing: a data folder that does not exist yet is not made, and another server's lock is
looked at for a moment, not taken.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pulid.errors import SetupError
from server.checks.finding import Finding, fault, gigabytes, nearest_folder, ok, warning
from server.jobs.data_dir import DataDir
from server.jobs.files import free_bytes
from server.jobs.storage import MIN_FREE_BYTES
from server.jobs.store import MIGRATIONS
from server.security.auth import cautions, keys_in_force
from server.settings import Settings

_SHORT = 2 * 10**9  # bytes; a few thousand pictures
_SQLITE = b"SQLite format 3\0"
_SCHEMA_AT = slice(60, 64)  # of the file: "user version", https://www.sqlite.org/fileformat.html


def service(settings: Settings) -> Iterator[Finding]:
    yield check_data_dir(DataDir(settings.data_dir))
    yield check_disk(settings.data_dir)
    yield from check_access(settings)


def check_data_dir(folder: DataDir) -> Finding:
    """Can this server have it, and read what lies in it?"""
    if problem := _why_not_writable(folder.root) or _why_not_usable(folder):
        return fault("data", problem)
    if not folder.root.exists():
        return ok("data", f"{folder.root} will be made at the first start.")
    return ok("data", f"{folder.root} is writable, and no other server uses it.")


def _why_not_writable(root: Path) -> str:
    there = nearest_folder(root)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return (
        f"The data folder {root} cannot be used: {there} is not writable for this user. Change its owner, or "
        "choose another folder with --data-dir."
    )


def _why_not_usable(folder: DataDir) -> str:
    if _is_locked(folder.root / "lock"):
        return (
            f"Another server uses the data folder {folder.root}. Stop it, or give this one a folder of its "
            "own with --data-dir."
        )
    try:
        schema = schema_of(folder.database)
    except OSError as exc:
        return (
            f"The database {folder.database} cannot be read: {exc.strerror}. Give it to the server's user, "
            "or choose another folder with --data-dir."
        )
    newest = max(map(_number_of, MIGRATIONS.glob("[0-9]*.sql")))
    if schema > newest:
        return (
            f"The database {folder.database} was written by a newer version of this server (schema {schema}; "
            f"this one knows {newest}). Start that version, or choose another folder with --data-dir."
        )
    return ""


def _is_locked(lock: Path) -> bool:
    """A file that this user may not open belongs to a server of another."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def schema_of(database: Path) -> int:
    """The version of its tables, from the head of the file; 0 where there is none. Opens no database.

    Raises OSError for a file that cannot be read.
    """
    try:
        with database.open("rb") as file:
            head = file.read(_SCHEMA_AT.stop)
    except FileNotFoundError:
        return 0
    return int.from_bytes(head[_SCHEMA_AT]) if head.startswith(_SQLITE) else 0


def _number_of(migration: Path) -> int:
    match = re.match("[0-9]+", migration.name)
    return int(match[0]) if match else 0


def check_disk(data_dir: Path) -> Finding:
    """Pictures need room; below the mark the server takes no new work."""
    free = free_bytes(nearest_folder(data_dir))
    found = f"{gigabytes(free)} are free for the data folder"
    if free < MIN_FREE_BYTES:
        return warning(
            "disk",
            f"Only {found}: below {gigabytes(MIN_FREE_BYTES)} every new job is refused. Make room, or choose "
            "another disk with --data-dir.",
        )
    if free < _SHORT:
        return warning("disk", f"Only {found}. Make room, or keep pictures for less long with --media-ttl-s.")
    return ok("disk", f"{found}.")


def check_access(settings: Settings) -> Iterator[Finding]:
    """Who may call? One finding for each caution."""
    try:
        keys = keys_in_force(settings)
    except SetupError as exc:
        yield fault("access", str(exc))
        return
    found = cautions(settings, keys)
    yield from (warning("access", caution) for caution in found)
    if not found:
        who = (
            f"whoever has one of {len(keys.names)} API key(s)" if keys else "this machine alone, without keys"
        )
        yield ok("access", f"May call: {who}.")
