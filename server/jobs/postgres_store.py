"""The records of jobs of several servers, in PostgreSQL: a call that returned is committed there.

Who owns which job under which lease, and that only its owner writes it: every write to a job is a
compare-and-set on owner and media id, which is new with each lease. Says over LISTEN/NOTIFY what
changed. Times are turned into the database's (`database_clock.py`). Does not know when a server beats
or claims (`leases.py`), nor files. Every call blocks; all calls come from one thread, which is given a
new connection after the old one broke.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from server.jobs.database_clock import DatabaseClock
from server.jobs.job import (
    EarlierSubmit,
    JobFile,
    JobRecord,
    JobState,
    KeyHasEnough,
    LeaseLost,
    StoreFailed,
    StoreFull,
    StoreSilent,
)
from server.jobs.postgres_schema import STARTING, Connection, connect, migrate, unusable, with_defaults
from server.jobs.rows import CHANGING, COLUMNS, files_of, json_of, record_of, row_of
from server.jobs.store import NameTaken

CHANNEL = "flux_pulid_jobs"
SWEPT_AT_ONCE = 5000  # jobs, and pictures of so many: less than a statement may take
STEPS = "steps "  # how a notice begins that changes no job
INTERRUPTED = "The server stopped before this picture was done. Send the request again."

_PATIENT_S = 1.0  # that it may take to hear that there is no connection
_COUNTING = 0x666C7579  # the first half of the advisory locks of keys whose jobs are counted
_NO_ROOM = "53"  # class of SQLSTATE: insufficient resources


class PostgresJobStore:
    def __init__(
        self, address: str, *, name: str, places: int, lease_s: float, unfinished_per_key: int = 0
    ) -> None:
        """`open` is the usual way. `places`: jobs that this server's devices hold at once.

        `unfinished_per_key`: how many a key may have at all servers together; 0: no limit.
        """
        self._address = address
        self._name = name
        self._life = secrets.token_hex(8)
        self._places = places
        self._lease_s = lease_s
        self._unfinished_per_key = unfinished_per_key
        self._clock = DatabaseClock()
        self._is_closed = False
        self._not_before = 0.0  # of the monotonic clock: when a database that says nothing is asked again
        self._connection: Connection = connect(address)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        name: str,
        places: int,
        lease_s: float,
        unfinished_per_key: int = 0,
        agree: Callable[[str | None], str] | None = None,
    ) -> PostgresJobStore:
        """Migrate the database and be a server of it. What an earlier life of it owned is nobody's.

        `agree` is told the mark of the place where all servers keep their files, None before there is
        one, and returns it; what it raises is raised. Raises DatabaseUnusable.
        """
        try:
            store = cls(
                with_defaults(url),
                name=name,
                places=places,
                lease_s=lease_s,
                unfinished_per_key=unfinished_per_key,
            )
        except psycopg.Error as exc:
            raise unusable(exc) from exc
        try:
            migrate(store._connection)
            if agree is not None:
                store._agree(agree)
            store._register()
        except psycopg.Error as exc:
            store.close()
            raise unusable(exc) from exc
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        self._is_closed = True
        self._connection.close()

    # records

    def insert(
        self, record: JobRecord, *, idempotency_key: str | None = None, body_digest: bytes = b""
    ) -> JobRecord:
        try:
            with self._transaction() as db:
                db.execute(_INSERT, self._row(record) | {"owner": self._name})
                if idempotency_key is not None:
                    self._take_key(db, record, idempotency_key, body_digest)
                if self._unfinished_per_key and not record.state.has_ended:
                    self._require_place(db, record.key)
                if record.api == "v2":
                    self._tell(db)
        except _KeyUsed as used:
            used.earlier.require_same(body_digest)
            return used.earlier.record
        return record

    def _take_key(self, db: Connection, record: JobRecord, idempotency_key: str, body_digest: bytes) -> None:
        """Raises _KeyUsed, also where another server has used it just now."""
        taken = db.execute(
            "INSERT INTO idempotency VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (record.key, idempotency_key, body_digest, record.id),
        )
        if not taken.rowcount:
            earlier = self._earlier(db, record.key, idempotency_key)
            if earlier is None:  # it was deleted in this moment
                raise StoreFailed
            raise _KeyUsed(earlier)

    def _require_place(self, db: Connection, key: str) -> None:
        """For the job that was just inserted. Submits of one key at several servers take turns."""
        db.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_COUNTING, key))
        counted = db.execute(
            f"SELECT count(*) AS jobs FROM jobs WHERE {_UNFINISHED} AND key = %s", (key,)
        ).fetchone()
        if counted is not None and counted["jobs"] > self._unfinished_per_key:
            raise KeyHasEnough

    def save(self, record: JobRecord, *, media_expires_at: float | None = None) -> None:
        with self._transaction() as db:
            stored = self._own_state(db, record)
            if not stored.may_become(record.state):
                raise ValueError(f"job {record.id} cannot go from {stored} to {record.state}")
            db.execute(_UPDATE, self._row(record))
            if record.state is JobState.COMPLETED and stored is not JobState.COMPLETED:
                if media_expires_at is None:
                    raise ValueError("a job that becomes COMPLETED needs media_expires_at")
                values = (record.media_id, json_of(record.files), self._clock.there(media_expires_at))
                db.execute("INSERT INTO media VALUES (%s, %s, %s)", values)
            if record.api == "v2":
                self._tell(db, record.id)

    def _own_state(self, db: Connection, record: JobRecord) -> JobState:
        """How the job stands, whose row is locked from here on. Raises KeyError or LeaseLost."""
        row = db.execute(
            "SELECT state, owner, media_id FROM jobs WHERE id = %s FOR UPDATE", (record.id,)
        ).fetchone()
        if row is None:
            raise KeyError(record.id)
        if (row["owner"], row["media_id"]) != (self._name, record.media_id):
            raise LeaseLost
        return JobState(row["state"])

    def get(self, job_id: str) -> JobRecord | None:
        rows = self._rows("SELECT * FROM jobs WHERE id = %s", job_id)
        return self._record(rows[0]) if rows else None

    def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None:
        with _faults_in_words():
            return self._earlier(self._connected(), key, idempotency_key)

    def _earlier(self, db: Connection, key: str, idempotency_key: str) -> EarlierSubmit | None:
        row = db.execute(
            "SELECT jobs.*, body_digest FROM idempotency JOIN jobs ON jobs.id = job_id "
            "WHERE idempotency.key = %s AND idempotency_key = %s",
            (key, idempotency_key),
        ).fetchone()
        return (
            None if row is None else EarlierSubmit(record=self._record(row), body_digest=row["body_digest"])
        )

    def unfinished(self) -> list[JobRecord]:
        rows = self._rows(
            f"SELECT * FROM jobs WHERE {_UNFINISHED} AND owner = %s ORDER BY number", self._name
        )
        return [self._record(row) for row in rows]

    def delete(self, job_id: str) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM media WHERE media_id = (SELECT media_id FROM jobs WHERE id = %s)", (job_id,)
            )
            db.execute("DELETE FROM jobs WHERE id = %s", (job_id,))
            self._tell(db, job_id)

    def media_file(self, media_id: str, name: str) -> JobFile | None:
        rows = self._rows("SELECT files FROM media WHERE media_id = %s", media_id)
        files = files_of(rows[0]["files"]) if rows else ()
        return next((file for file in files if file.name == name), None)

    def sweep(self, *, now: float, result_ttl_s: float) -> list[str]:
        """What another server deletes in this moment is left to it, what is too much to the next time."""
        now = self._clock.there(now)
        with self._transaction() as db:
            db.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE "
                "state IN ('COMPLETED', 'FAILED') AND finished_at <= %s LIMIT %s FOR UPDATE SKIP LOCKED)",
                (now - result_ttl_s, SWEPT_AT_ONCE),
            )
            expired = db.execute(
                "DELETE FROM media WHERE media_id IN (SELECT media_id FROM media WHERE expires_at <= %s "
                "LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING media_id",
                (now, SWEPT_AT_ONCE),
            )
            return [row["media_id"] for row in expired]

    def known_media(self) -> set[str]:
        return {row["media_id"] for row in self._rows("SELECT media_id FROM media")}

    def unfinished_media(self) -> dict[str, str]:
        """The media id, by job id, of the unfinished jobs of all servers."""
        rows = self._rows(f"SELECT id, media_id FROM jobs WHERE {_UNFINISHED}")
        return {row["id"]: row["media_id"] for row in rows}

    def probe(self) -> None:
        with self._transaction() as db:
            db.execute("UPDATE servers SET places = places WHERE id = %s", (self._name,))

    def _agree(self, agree: Callable[[str | None], str]) -> None:
        """Servers that start at once agree one after the other."""
        with self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (STARTING,))
            row = self._connection.execute("SELECT mark FROM place").fetchone()
            mark = agree(row["mark"] if row else None)
            if row is None:
                self._connection.execute("INSERT INTO place VALUES (%s)", (mark,))

    # leases

    def keeps_house(self) -> bool:
        rows = self._rows(
            "SELECT min(id) = %s AS keeps FROM servers WHERE alive_until >= clock_timestamp()", self._name
        )
        return bool(rows[0]["keeps"])

    def _register(self) -> None:
        with self._connection.transaction():
            self._connection.execute(
                f"INSERT INTO servers VALUES (%s, %s, %s, {_LEASE_ENDS}) ON CONFLICT (id) DO UPDATE SET "
                "life = excluded.life, places = excluded.places, alive_until = excluded.alive_until",
                (self._name, self._life, self._places, self._lease_s),
            )
            self._look_at_the_clock(self._connection)
            own = self._connection.execute(
                f"SELECT id, api FROM jobs WHERE {_UNFINISHED} AND owner = %s FOR UPDATE", (self._name,)
            )
            self._take(self._connection, own.fetchall())

    def beat(self) -> dict[str, str]:
        with self._transaction() as db:
            beaten = db.execute(
                f"INSERT INTO servers VALUES (%s, %s, %s, {_LEASE_ENDS}) ON CONFLICT (id) DO UPDATE "
                "SET alive_until = excluded.alive_until WHERE servers.life = excluded.life",
                (self._name, self._life, self._places, self._lease_s),
            )
            if not beaten.rowcount:
                raise NameTaken
            self._look_at_the_clock(db)
            own = db.execute(
                f"SELECT id, media_id FROM jobs WHERE {_UNFINISHED} AND owner = %s", (self._name,)
            )
            return {row["id"]: row["media_id"] for row in own}

    def _look_at_the_clock(self, db: Connection) -> None:
        if row := db.execute(f"SELECT {_NOW} AS now").fetchone():
            self._clock.heard(row["now"])

    def take_from_the_dead(self) -> None:
        with self._transaction() as db:
            db.execute(
                "DELETE FROM servers WHERE id IN (SELECT id FROM servers "
                "WHERE alive_until < clock_timestamp() AND id <> %s FOR UPDATE SKIP LOCKED)",
                (self._name,),
            )
            orphans = db.execute(
                f"SELECT id, api FROM jobs WHERE {_UNFINISHED} AND owner IS NOT NULL AND owner <> %s "
                "AND NOT EXISTS (SELECT FROM servers WHERE servers.id = owner) FOR UPDATE SKIP LOCKED",
                (self._name,),
            ).fetchall()
            self._take(db, orphans)

    def _take(self, db: Connection, orphans: Iterable[DictRow]) -> None:
        """Locked rows of the unfinished jobs of a dead server."""
        waiting = [row["id"] for row in orphans if row["api"] == "v2"]
        self._release(db, waiting)
        db.execute(  # their time ran on while nobody worked
            f"UPDATE jobs SET deadline_at = greatest(deadline_at, {_NOW} + deadline_at - submitted_at) "
            "WHERE id = ANY(%s)",
            (waiting,),
        )
        db.execute(
            f"UPDATE jobs SET state = 'FAILED', finished_at = {_NOW}, error = %s, "
            "error_code = 'interrupted', owner = NULL WHERE id = ANY(%s)",
            (INTERRUPTED, [row["id"] for row in orphans if row["api"] == "v1"]),
        )

    def claim(self, at_most: int, *, of_the_busy: bool = True) -> list[JobRecord]:
        with self._transaction() as db:
            rows = db.execute(
                _OF_THE_BUSY if of_the_busy else _OF_NOBODY, {"name": self._name, "at_most": at_most}
            ).fetchall()
            leases = self._lease_anew(db, [row["id"] for row in rows])
            for job_id in leases:
                self._tell(db, job_id)
            return [self._record(row | {"media_id": leases[row["id"]]}) for row in rows]

    def seize(self, ended: JobRecord) -> JobRecord | None:
        with self._transaction() as db:
            row = db.execute("SELECT * FROM jobs WHERE id = %s FOR UPDATE", (ended.id,)).fetchone()
            if row is None or JobState(row["state"]).has_ended:
                return None if row is None else self._record(row)
            self._lease_anew(db, [ended.id])
            db.execute(_UPDATE, self._row(ended))
            self._tell(db, ended.id)
            return self.get(ended.id)

    def give_back(self, job_ids: Collection[str]) -> None:
        with self._transaction() as db:
            own = db.execute(
                f"SELECT id FROM jobs WHERE {_UNFINISHED} AND owner = %s AND api = 'v2' AND id = ANY(%s) "
                "FOR UPDATE",
                (self._name, list(job_ids)),
            )
            self._release(db, [row["id"] for row in own])

    def leave(self) -> None:
        with self._transaction() as db:
            left = db.execute("DELETE FROM servers WHERE id = %s AND life = %s", (self._name, self._life))
        if left.rowcount:  # else another process has the name, and what it owns
            self.give_back([record.id for record in self.unfinished()])

    def tell_steps(self, told: str) -> None:
        """Nothing is written, so nothing has to reach a disk."""
        with self._transaction() as db:
            db.execute("SET LOCAL synchronous_commit TO off")
            self._tell(db, STEPS + told)

    def _release(self, db: Connection, job_ids: list[str]) -> None:
        """Locked rows of v2 jobs."""
        db.execute(
            "UPDATE jobs SET state = 'QUEUED', started_at = NULL, owner = NULL WHERE id = ANY(%s)", (job_ids,)
        )
        for job_id in job_ids:
            self._tell(db, job_id)
        if job_ids:
            self._tell(db)

    def _lease_anew(self, db: Connection, job_ids: Iterable[str]) -> dict[str, str]:
        """Locked rows are this server's from here on, each under a new media id."""
        leases = {job_id: secrets.token_hex(16) for job_id in job_ids}
        for job_id, media_id in leases.items():
            db.execute(
                "UPDATE jobs SET owner = %s, media_id = %s WHERE id = %s", (self._name, media_id, job_id)
            )
        return leases

    def _tell(self, db: Connection, said: str = "") -> None:
        """To all servers, once this is committed: the id of a job that has changed; nothing: one waits."""
        db.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{self._name} {said}"))

    # the connection

    def _rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        with _faults_in_words():
            return self._connected().execute(sql.SQL(query), values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """All of it or nothing."""
        with _faults_in_words():
            connection = self._connected()
            try:
                with connection.transaction():
                    yield connection
            except psycopg.errors.ReadOnlySqlTransaction:  # another machine has its place by now
                connection.close()
                raise

    def _connected(self) -> Connection:
        if self._connection.closed and not self._is_closed:
            self._connect_again()
        return self._connection

    def _connect_again(self) -> None:
        """Who waits behind a call that waited for an answer in vain is not made to wait, too."""
        started = time.monotonic()
        if started < self._not_before:
            raise StoreSilent
        try:
            self._connection = connect(self._address)
        except psycopg.Error:
            if time.monotonic() - started > _PATIENT_S:
                self._not_before = time.monotonic() + _PATIENT_S
            raise

    # rows

    def _row(self, record: JobRecord) -> dict[str, Any]:
        row = self._clock.row_there(row_of(record))
        return row | {
            "error": record.error and record.error.replace("\0", "")
        }  # the one sign it does not take

    def _record(self, row: dict[str, Any]) -> JobRecord:
        return record_of(self._clock.row_here(row))


class _KeyUsed(Exception):
    def __init__(self, earlier: EarlierSubmit) -> None:
        super().__init__()
        self.earlier = earlier


@contextmanager
def _faults_in_words() -> Iterator[None]:
    """Whatever the database complains of, it may not the next time."""
    try:
        yield
    except psycopg.Error as exc:
        if (exc.sqlstate or "").startswith(_NO_ROOM):
            raise StoreFull from exc
        raise StoreSilent from exc


_UNFINISHED = "state IN ('QUEUED', 'PROCESSING')"
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_LEASE_ENDS = "clock_timestamp() + make_interval(secs => %s)"
_INSERT = (
    f"INSERT INTO jobs ({', '.join(COLUMNS)}, owner) "
    f"VALUES ({', '.join(f'%({column})s' for column in COLUMNS)}, %(owner)s)"
)
_CHANGES = ", ".join(f"{column} = %({column})s" for column in CHANGING)
_UPDATE = f"UPDATE jobs SET {_CHANGES} WHERE id = %(id)s"

_OF_NOBODY = """
    SELECT * FROM jobs WHERE state = 'QUEUED' AND api = 'v2' AND owner IS NULL
    ORDER BY number LIMIT %(at_most)s FOR UPDATE SKIP LOCKED
"""

# These; or of a living server that has more before it than its devices hold.
_OF_THE_BUSY = f"""
    WITH waiting AS (
        SELECT number, row_number() OVER (PARTITION BY owner ORDER BY number) AS place
        FROM jobs WHERE {_UNFINISHED}
    )
    SELECT jobs.* FROM jobs JOIN waiting USING (number) LEFT JOIN servers ON servers.id = jobs.owner
    WHERE jobs.state = 'QUEUED' AND jobs.api = 'v2'
    AND (jobs.owner IS NULL OR (jobs.owner <> %(name)s AND waiting.place > servers.places))
    ORDER BY jobs.number LIMIT %(at_most)s FOR UPDATE OF jobs SKIP LOCKED
"""
