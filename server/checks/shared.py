"""What several servers share: is the database reached, of a version that this one knows, and writable; are
bodies and pictures kept where they should be?

Nothing is made or changed but a small file in the place for bodies, which is removed again. No password
is ever in what is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pulid.errors import SetupError
from server.app import shared_places
from server.checks.finding import Finding, fault, nearest_folder, ok, warning
from server.jobs.database_clock import MUCH_S
from server.jobs.places import SharedPlaces, folder_of
from server.settings import Settings


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
    yield check_database(places)
    yield check_media(places)


def check_database(places: SharedPlaces) -> Finding:
    try:
        facts = places.look_at_database()
    except SetupError as exc:
        return fault("database", str(exc))
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


def check_media(places: SharedPlaces) -> Finding:
    folder = folder_of(places.media_url)
    if folder is not None and not (folder / "bodies").exists():
        return _check_new_folder(places.media_url, os.access(nearest_folder(folder), os.W_OK | os.X_OK))
    try:
        places.open_bodies()
    except SetupError as exc:
        return fault("media", str(exc))
    return ok("media", f"{places.media_url} takes bodies and pictures.")


def _check_new_folder(media_url: str, is_writable: bool) -> Finding:
    if not is_writable:
        return fault(
            "media", f"{media_url} cannot be made by this user. Change the owner of what is above it."
        )
    return ok("media", f"{media_url} will be made at the first start.")
