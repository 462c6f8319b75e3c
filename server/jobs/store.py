"""The records of jobs, in SQLite: a call that returned has its row on the disk (WAL, synchronous=FULL).

Also which request an Idempotency-Key stood for, and which pictures exist: they outlive their job.
Knows the columns and the moves between states. Does not know bodies and pictures (`files.py`),
waiting and devices, HTTP. Every call blocks; all calls come from the one thread that opened it.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from pulid.errors import SetupError
from server.jobs.job import EarlierSubmit, JobFile, JobRecord, JobState, StoreFailed, StoreFull
from server.jobs.rows import CHANGING, COLUMNS, files_of, json_of, record_of, row_of

MIGRATIONS = Path(__file__).parent / "migrations"

_BUSY_S = 5.0  # how long to wait for an operator's own look into the database

_NO_ROOM = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,  # no file handle left
    sqlite3.SQLITE_READONLY,  # what a kernel turns a failing disk into
    sqlite3.SQLITE_IOERR_WRITE,  # a quota or a file size limit
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class StoreUnusable(SetupError):
    """The database cannot be opened, or not by this version."""

    code = "store_unusable"


class StoreDamaged(StoreUnusable):
    code = "store_damaged"

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(
            f"The database {path} is damaged ({finding}). Move it away together with {path.name}-wal and "
            f"{path.name}-shm, put a copy back if there is one, and start again. Without a copy the jobs "
            "and pictures it knew are lost."
        )


class DatabaseUnusable(SetupError):
    """DATABASE_URL leads to no database that this version can use."""

    code = "database_unusable"


class NameTaken(SetupError):
    """Another process has the name of this server, which is in its data folder."""

    code = "name_taken"

    def __init__(self) -> None:
        super().__init__(
            "Another server has started under the name of this one: its data folder is a copy. Give each "
            "server a DATA_DIR of its own, without the file server-id of another."
        )


class JobStore(Protocol):
    """What the service may ask of a store. A call that writes is on the disk when it returns.

    Every call raises StoreFailed when the database does not work (StoreFull: there is no room), and
    has then changed nothing.
    """

    def insert(
        self, record: JobRecord, *, idempotency_key: str | None = None, body_digest: bytes = b""
    ) -> JobRecord:
        """Add a job; the record in the store, which is an earlier one where the key was used before.

        Raises IdempotencyConflict where it was used with another body.
        """
        ...

    def save(self, record: JobRecord, *, media_expires_at: float | None = None) -> None:
        """Overwrite a job's row. The move to COMPLETED needs `media_expires_at` and records the pictures.

        Raises KeyError for a job that is gone, ValueError for a state that no moves lead to.
        """
        ...

    def get(self, job_id: str) -> JobRecord | None: ...

    def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None: ...

    def unfinished(self) -> list[JobRecord]:
        """Jobs that are QUEUED or PROCESSING, in order of arrival."""
        ...

    def delete(self, job_id: str) -> None:
        """Forget a job, its Idempotency-Key and its pictures."""
        ...

    def media_file(self, media_id: str, name: str) -> JobFile | None: ...

    def sweep(self, *, now: float, result_ttl_s: float) -> list[str]:
        """Forget jobs that ended `result_ttl_s` seconds ago, and pictures that have expired.

        Returns the media ids of those pictures: their files are still there.
        """
        ...

    def known_media(self) -> set[str]: ...

    def probe(self) -> None:
        """A write that changes nothing."""
        ...

    def close(self) -> None: ...


class SharedJobStore(JobStore, Protocol):
    """A store of several servers, each of which has the jobs it owns under leases.

    `unfinished` tells those of this server: none when it starts, for what an earlier life of it owned is
    then nobody's. A `save` of a job that is another's by now raises LeaseLost.
    """

    def beat(self) -> dict[str, str]:
        """Say that this server is alive. The media id, by job id, of each unfinished job that it owns.

        Raises NameTaken where another process has its name.
        """
        ...

    def take_from_the_dead(self) -> None:
        """Jobs of servers that have not beaten for a lease: v2 is QUEUED and nobody's, v1 is FAILED."""
        ...

    def claim(self, at_most: int, *, of_the_busy: bool = True) -> list[JobRecord]:
        """Queued v2 jobs, now this server's: nobody's, or what waits behind a busy one's own."""
        ...

    def tell_steps(self, told: str) -> None:
        """To all other servers that listen now."""
        ...

    def unfinished_media(self) -> dict[str, str]:
        """The media id, by job id, of the unfinished jobs of all servers."""
        ...

    def keeps_house(self) -> bool:
        """Whether it is this of all living servers that clears away what no record knows."""
        ...

    def seize(self, ended: JobRecord) -> JobRecord | None:
        """End a job, whoever has it. The record in the store: this one, or how it had ended before."""
        ...

    def give_back(self, job_ids: Collection[str]) -> None:
        """Unfinished v2 jobs of this server: QUEUED, and nobody's."""
        ...

    def leave(self) -> None:
        """Give back all, and be no server any more."""
        ...


class SqliteJobStore:
    def __init__(self, connection: sqlite3.Connection) -> None:
        """`connection`: autocommit, to a database in the newest schema. `open` is the usual way."""
        connection.row_factory = sqlite3.Row
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, migrations: Path = MIGRATIONS) -> SqliteJobStore:
        """Open, check and, where it is older, migrate the database; create it where there is none.

        Raises StoreUnusable or StoreDamaged.
        """
        try:
            _create_private(path)
            connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as exc:
            raise _unusable(path, exc) from exc
        try:
            _check(connection, path)
            configure(connection)
            _migrate(connection, path, sorted(migrations.glob("[0-9]*.sql")))
        except sqlite3.Error as exc:
            connection.close()
            raise _unusable(path, exc) from exc
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def close(self) -> None:
        self._connection.close()

    def insert(
        self, record: JobRecord, *, idempotency_key: str | None = None, body_digest: bytes = b""
    ) -> JobRecord:
        with self._transaction() as db:
            if idempotency_key is not None:
                earlier = self.earlier(record.key, idempotency_key)
                if earlier is not None:
                    earlier.require_same(body_digest)
                    return earlier.record
            db.execute(_INSERT, row_of(record))
            if idempotency_key is not None:
                values = (record.key, idempotency_key, body_digest, record.id)
                db.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?)", values)
        return record

    def save(self, record: JobRecord, *, media_expires_at: float | None = None) -> None:
        with self._transaction() as db:
            stored = _state_of(db, record.id)
            if not stored.may_become(record.state):
                raise ValueError(f"job {record.id} cannot go from {stored} to {record.state}")
            db.execute(_UPDATE, row_of(record))
            if record.state is JobState.COMPLETED and stored is not JobState.COMPLETED:
                if media_expires_at is None:
                    raise ValueError("a job that becomes COMPLETED needs media_expires_at")
                values = (record.media_id, json_of(record.files), media_expires_at)
                db.execute("INSERT INTO media (media_id, files, expires_at) VALUES (?, ?, ?)", values)

    def get(self, job_id: str) -> JobRecord | None:
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", job_id)
        return record_of(rows[0]) if rows else None

    def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None:
        rows = self._rows(
            "SELECT jobs.*, body_digest FROM idempotency JOIN jobs ON jobs.id = job_id "
            "WHERE idempotency.key = ? AND idempotency_key = ?",
            key,
            idempotency_key,
        )
        if not rows:
            return None
        return EarlierSubmit(record=record_of(rows[0]), body_digest=rows[0]["body_digest"])

    def unfinished(self) -> list[JobRecord]:
        rows = self._rows("SELECT * FROM jobs WHERE state IN ('QUEUED', 'PROCESSING') ORDER BY number")
        return [record_of(row) for row in rows]

    def delete(self, job_id: str) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM media WHERE media_id = (SELECT media_id FROM jobs WHERE id = ?)", (job_id,)
            )
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def media_file(self, media_id: str, name: str) -> JobFile | None:
        rows = self._rows("SELECT files FROM media WHERE media_id = ?", media_id)
        files = files_of(rows[0]["files"]) if rows else ()
        return next((file for file in files if file.name == name), None)

    def sweep(self, *, now: float, result_ttl_s: float) -> list[str]:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM jobs WHERE state IN ('COMPLETED', 'FAILED') AND finished_at <= ?",
                (now - result_ttl_s,),
            )
            expired = db.execute("SELECT media_id FROM media WHERE expires_at <= ?", (now,)).fetchall()
            db.execute("DELETE FROM media WHERE expires_at <= ?", (now,))
        return [row["media_id"] for row in expired]

    def known_media(self) -> set[str]:
        return {row["media_id"] for row in self._rows("SELECT media_id FROM media")}

    def probe(self) -> None:
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {version}")

    def _rows(self, query: str, *values: str) -> list[sqlite3.Row]:
        with _faults_in_words():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        with _faults_in_words():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back after some errors
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def _faults_in_words() -> Iterator[None]:
    """Whatever SQLite complains of, it may not the next time."""
    try:
        yield
    except sqlite3.Error as exc:
        raise (StoreFull if _is_one_of(exc, _NO_ROOM) else StoreFailed)() from exc


# rows

_INSERT = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}) "  # noqa: S608  # our own words
    f"VALUES ({', '.join(f':{column}' for column in COLUMNS)})"
)
_CHANGES = ", ".join(f"{column} = :{column}" for column in CHANGING)
_UPDATE = f"UPDATE jobs SET {_CHANGES} WHERE id = :id"  # noqa: S608


def _state_of(db: sqlite3.Connection, job_id: str) -> JobState:
    row = db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise KeyError(job_id)
    return JobState(row["state"])


# opening


def configure(connection: sqlite3.Connection) -> None:
    """How this server writes: an answer that left is on the disk, also after a power cut."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnusable(
            "The file system of the data folder cannot hold a SQLite database in WAL mode (network file "
            "systems often cannot). Choose a folder on a local disk with DATA_DIR."
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # no temporary file to run out of room or handles for


def _create_private(path: Path) -> None:
    # SQLite gives -wal and -shm the mode of the database.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    findings = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    if findings != ["ok"]:
        raise StoreDamaged(path, "; ".join(findings))


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Path]) -> None:
    """Bring the schema to the newest version: all missing migrations in one transaction, or none."""
    newest = max(_version_of(migration) for migration in migrations)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise StoreUnusable(
            f"The database {path} was written by a newer version of this server (schema {version}; this one "
            f"knows {newest}). Start that version, or choose another folder with DATA_DIR."
        )
    missing = [migration for migration in migrations if _version_of(migration) > version]
    if missing and version > 0:
        _back_up(connection, path.with_name(f"{path.name}.v{version}.bak"))
    if missing:
        script = "\n".join(migration.read_text() for migration in missing)
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {newest};\nCOMMIT;")


def _version_of(migration: Path) -> int:
    return int(re.match("[0-9]+", migration.name)[0])  # type: ignore[index]  # the glob begins with a digit


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    """A whole copy under the target's name, or none: a kill in between leaves a temporary file."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    _create_private(temporary)
    with closing(sqlite3.connect(temporary)) as copy:
        connection.backup(copy)
    temporary.replace(target)


def _is_one_of(exc: sqlite3.Error, codes: set[int]) -> bool:
    """Whether an error has one of these codes, in full or in its primary part (the low byte)."""
    code: int = getattr(exc, "sqlite_errorcode", 0)  # absent from errors of the Python module itself
    return code in codes or code & 0xFF in codes


def _unusable(path: Path, exc: OSError | sqlite3.Error) -> StoreUnusable:
    if isinstance(exc, sqlite3.Error) and _is_one_of(exc, _DAMAGED):
        return StoreDamaged(path, str(exc))
    return StoreUnusable(
        f"The database {path} cannot be opened: {exc}. Give the server's user write access to it on a disk "
        "with room, and close other programs that use it."
    )
