"""The database of several servers: how it is reached, and that its schema is the newest.

The schema only goes forward: numbered files in `migrations/postgres/`, all missing ones in one
transaction. Servers that start at once wait for each other. Knows no records.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from server.jobs.store import DatabaseUnusable

MIGRATIONS = Path(__file__).parent / "migrations" / "postgres"

STATEMENT_S = 8  # that a statement may take; less than a lease
REACH: dict[str, Any] = {  # libpq's parameters, where the address does not name them
    "application_name": "flux-pulid-server",
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 1000 * STATEMENT_S,
}
_STARTING = 0x666C7578  # "flux": the advisory lock of servers that start

Connection = psycopg.Connection[DictRow]


def with_defaults(url: str) -> str:
    """The address, with what it does not say about patience. Raises DatabaseUnusable."""
    try:
        said = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        raise DatabaseUnusable("DATABASE_URL is not an address of a PostgreSQL database.") from exc
    return psycopg.conninfo.make_conninfo("", **(REACH | said))


def connect(address: str) -> Connection:
    """A connection on which what was committed survives a power cut, as far as the database has its say."""
    connection = psycopg.connect(address, autocommit=True, row_factory=dict_row)
    try:
        connection.execute(f"SET statement_timeout = '{STATEMENT_S}s'")
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: Connection, migrations: Path = MIGRATIONS) -> None:
    """Bring the schema to the newest version, or leave it. Raises DatabaseUnusable for a newer one."""
    files = sorted(migrations.glob("[0-9]*.sql"))
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_STARTING,))
        connection.execute("CREATE TABLE IF NOT EXISTS flux_pulid_schema (version INTEGER NOT NULL)")
        version = _version(connection)
        if version > len(files):
            raise DatabaseUnusable(
                f"The database was written by a newer version of this server (schema {version}; this one "
                f"knows {len(files)}). Start that version, or name another database with DATABASE_URL."
            )
        _apply(connection, files[version:])
        if version < len(files):
            connection.execute("DELETE FROM flux_pulid_schema")
            connection.execute("INSERT INTO flux_pulid_schema VALUES (%s)", (len(files),))


def _version(connection: Connection) -> int:
    """0 for a database that is new."""
    row = connection.execute("SELECT max(version) AS version FROM flux_pulid_schema").fetchone()
    return (row or {}).get("version") or 0


def _apply(connection: Connection, files: Sequence[Path]) -> None:
    for file in files:
        connection.execute(file.read_bytes())
