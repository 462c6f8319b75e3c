"""What several servers share: is the database reached, of a version that this one knows, and writable; are
bodies and pictures kept where they should be?

Nothing is made or changed but a small file in the place for bodies, which is removed again. No password
is ever in what is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pulid.errors import SetupError
from server.app import shared_places
from server.checks.finding import Finding, fault, ok, warning
from server.jobs.database_clock import MUCH_S
from server.jobs.places import SharedPlaces, folder_of
from server.settings import Settings

if TYPE_CHECKING:
    from server.jobs.postgres_schema import DatabaseFacts


def shared(settings: Settings) -> Iterator[Finding]:
    """Takes as long as they take to answer. Nothing is found for a server that shares nothing."""
    places = shared_places(settings, ())
    if places is None:
        return
    try:
        places.require_extra()
    except SetupError as exc:
        yield fault("database", str(exc))
        return
    facts: DatabaseFacts | None = None
    try:
        facts = places.look_at_database()
        yield check_database(facts)
    except SetupError as exc:
        yield fault("database", str(exc))
    yield check_media(places, None if facts is None else facts.place)


def check_database(facts: DatabaseFacts) -> Finding:
    found = f"PostgreSQL {facts.release}"
    if not facts.may_write:
        return fault(
            "database",
            f"{found} answers, and its user may not write there. Let this server's user create tables in its "
            "schema, or give it the tables that are there.",
        )
    ahead_s = time.time() - facts.clock
    if abs(ahead_s) >= MUCH_S:
        return warning(
            "database",
            f"{found} answers, and its clock is {abs(ahead_s):.0f} seconds "
            f"{'behind' if ahead_s > 0 else 'ahead of'} this machine's. Set both with NTP.",
        )
    if facts.version == 0:
        return ok("database", f"{found} answers; the first start makes the tables.")
    return ok("database", f"{found} answers, with tables of version {facts.version}.")


def check_media(places: SharedPlaces, agreed: str | None) -> Finding:
    """`agreed`: the mark of the place that the other servers have, None before there are any."""
    folder = folder_of(places.media_url)
    is_new = folder is not None and folder.is_dir() and not (folder / "bodies").exists()
    try:
        places.require_agreed(agreed)
        if not (is_new and folder is not None and os.access(folder, os.W_OK | os.X_OK)):
            places.open_bodies()
    except SetupError as exc:
        return fault("media", str(exc))
    return ok("media", f"{places.media_url} {'may be written' if is_new else 'takes bodies and pictures'}.")
