"""The database of several servers: how it is reached, and that its schema is the newest.

The schema only goes forward: numbered files in `migrations/postgres/`, all missing ones in one
transaction. Servers that start at once wait for each other. Knows no records.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from server.jobs.store import DatabaseUnusable

MIGRATIONS = Path(__file__).parent / "migrations" / "postgres"

STATEMENT_S = 8  # that a statement may take; less than a lease
REACH: dict[str, Any] = {  # libpq's parameters, where the address does not name them
    "application_name": "flux-pulid-server",
    "client_encoding": "UTF8",
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 1000 * STATEMENT_S,
    "target_session_attrs": "read-write",  # of several addresses, and of one that has moved: who takes writes
}
# Of the connection, at the database. A server that freezes within a transaction keeps its locks no longer
# than a lease, and a machine that is gone no longer than that either.
SESSION = {
    "statement_timeout": f"{STATEMENT_S}s",
    "idle_in_transaction_session_timeout": f"{STATEMENT_S}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_NO_ADDRESS = (
    "DATABASE_URL is not an address of a PostgreSQL database. In a password, write signs such as @ : / ? # % "
    "as %40 %3A %2F %3F %23 %25."
)
STARTING = 0x666C7578  # "flux": the advisory lock of servers that start

Connection = psycopg.Connection[DictRow]


def with_defaults(url: str) -> str:
    """The address, with what it does not say about patience. Raises DatabaseUnusable."""
    try:
        said = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        raise DatabaseUnusable(_NO_ADDRESS) from exc
    if _holds_a_part_of_the_password(said):
        raise DatabaseUnusable(_NO_ADDRESS)
    return psycopg.conninfo.make_conninfo("", **(REACH | said))


def _holds_a_part_of_the_password(said: dict[str, Any]) -> bool:
    """Where : / @ are not written in percent, what follows is read as a host or port, and told in errors."""
    ports = str(said.get("port") or "").split(",")
    names = f"{said.get('host')}{said.get('dbname')}{said.get('user')}"
    return "@" in names or not all(port.isdecimal() or not port for port in ports)


def unusable(exc: psycopg.Error) -> DatabaseUnusable:
    """What its driver says holds addresses and names of users, and no password."""
    said = str(exc).strip().rstrip(".?")
    remedy = "Look whether it runs and lets this server's user create tables."
    if "certificate" in said:
        remedy = (
            "Name the file of its authority's certificate as sslrootcert in the address; with "
            "sslrootcert=system, name the machine's in the variable SSL_CERT_FILE."
        )
    return DatabaseUnusable(f"The database that DATABASE_URL names cannot be used: {said}. {remedy}")


def connect(address: str) -> Connection:
    """A connection on which what was committed survives a power cut, as far as the database has its say."""
    connection = psycopg.connect(address, autocommit=True, row_factory=dict_row)
    try:
        connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS said (name, value)",
            (list(SESSION), list(SESSION.values())),
        )
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """What a look at the database tells. Nothing in it has a password."""

    release: str  # of PostgreSQL
    version: int  # of the tables; 0: there are none yet
    may_write: bool  # what a server needs: its user may make tables, or use those that are there
    clock: float  # Unix seconds
    place: str | None = None  # the mark of where files are kept, once servers have agreed on it


def look_at(url: str) -> DatabaseFacts:
    """Reach the database and change nothing. Raises DatabaseUnusable, for tables that are too new also."""
    try:
        with closing(connect(with_defaults(url))) as connection:
            facts = _facts(connection)
    except psycopg.Error as exc:
        raise unusable(exc) from exc
    _require_known(facts.version, len(_files(MIGRATIONS)))
    return facts


def _facts(connection: Connection) -> DatabaseFacts:
    row = connection.execute(
        "SELECT current_setting('server_version') AS release, extract(epoch FROM clock_timestamp())::float8 "
        "AS clock, to_regclass('flux_pulid_schema') IS NOT NULL AS has_tables, "
        "has_schema_privilege(current_schema(), 'CREATE') AS may_create"
    ).fetchone()
    if row is None:
        raise psycopg.OperationalError("it does not answer")
    may_write, place = bool(row["may_create"]), None
    if row["has_tables"]:
        owned = connection.execute(
            "SELECT bool_and(has_table_privilege(name, doing)) AS may_write "
            "FROM unnest('{jobs,media,servers,idempotency}'::text[]) AS tables (name), "
            "unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needs (doing)"
        ).fetchone()
        may_write = bool(owned and owned["may_write"])
        mark = connection.execute("SELECT mark FROM place").fetchone() if may_write else None
        place = mark["mark"] if mark else None
    return DatabaseFacts(
        release=row["release"].split()[0],
        version=_version(connection) if row["has_tables"] else 0,
        may_write=may_write,
        clock=row["clock"],
        place=place,
    )


def migrate(connection: Connection, migrations: Path = MIGRATIONS) -> None:
    """Bring the schema to the newest version, or leave it. Raises DatabaseUnusable for a newer one."""
    files = _files(migrations)
    with connection.transaction():
        connection.execute(
            "SET LOCAL statement_timeout TO 0"
        )  # tables may be large, and others wait for this
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (STARTING,))
        connection.execute("CREATE TABLE IF NOT EXISTS flux_pulid_schema (version INTEGER NOT NULL)")
        version = _version(connection)
        _require_known(version, len(files))
        _apply(connection, files[version:])
        if version < len(files):
            connection.execute("DELETE FROM flux_pulid_schema")
            connection.execute("INSERT INTO flux_pulid_schema VALUES (%s)", (len(files),))


def _files(migrations: Path) -> list[Path]:
    return sorted(migrations.glob("[0-9]*.sql"))


def _require_known(version: int, newest: int) -> None:
    if version > newest:
        raise DatabaseUnusable(
            f"The database was written by a newer version of this server (schema {version}; this one "
            f"knows {newest}). Start that version, or name another database with DATABASE_URL."
        )


def _version(connection: Connection) -> int:
    """0 for a database that is new."""
    row = connection.execute("SELECT max(version) AS version FROM flux_pulid_schema").fetchone()
    return (row or {}).get("version") or 0


def _apply(connection: Connection, files: Sequence[Path]) -> None:
    for file in files:
        connection.execute(file.read_bytes())
