"""Where the state that several servers share lies: what DATABASE_URL and MEDIA_URL mean.

The libraries for it are an extra, and are loaded here alone, when somebody asks. Knows no records.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pulid.errors import SetupError
from server.jobs.files import BodyStore, JobBodies, MediaFiles, MediaStore
from server.jobs.job import StoreFailed

if TYPE_CHECKING:
    from server.jobs.object_files import ObjectFolder
    from server.jobs.postgres_notices import Notices
    from server.jobs.postgres_schema import DatabaseFacts
    from server.jobs.postgres_store import PostgresJobStore

_MARK = "place-id"
SAID = 400  # characters of an error that are told
LEASE_S = 10.0  # that a server may say nothing before others take up its jobs


class MediaPlaceUnusable(SetupError):
    """MEDIA_URL leads to no place that this server can use."""

    code = "media_place_unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPlaces:
    """Opens what is shared. Its text has no password."""

    database_url: str
    media_url: str
    devices: int  # of this server
    unfinished_per_key: int = 0  # jobs, at all servers together; 0: no limit
    lease_s: float = LEASE_S

    def __repr__(self) -> str:
        return f"SharedPlaces({self.media_url!r})"

    @property
    def places(self) -> int:
        """Jobs that this server's devices hold at once: one runs, one is ahead."""
        return 2 * self.devices

    def require_extra(self) -> None:
        """Raises SetupError where the libraries are not installed."""
        missing = [name for name in ("psycopg", "obstore") if find_spec(name) is None]
        if missing:
            raise SetupError(
                f"DATABASE_URL and MEDIA_URL need {' and '.join(missing)}. Install the extra with "
                "pip install -c configs/constraints.txt 'flux-pulid-server[cluster]', or unset both."
            )

    def look_at_database(self) -> DatabaseFacts:
        """Blocks, and changes nothing. Raises DatabaseUnusable."""
        from server.jobs.postgres_schema import look_at

        return look_at(self.database_url)

    def open_store(self, name: str) -> PostgresJobStore:
        """Blocks. Raises DatabaseUnusable."""
        from server.jobs.postgres_store import PostgresJobStore

        return PostgresJobStore.open(
            self.database_url,
            name=name,
            places=self.places,
            lease_s=self.lease_s,
            unfinished_per_key=self.unfinished_per_key,
            agree=self._agree,
        )

    def _agree(self, mark: str | None) -> str:
        """The mark of the place. A server that keeps files elsewhere would lose the others' jobs.

        Raises MediaPlaceUnusable.
        """
        found = self._mark()
        if mark is None and found is None:
            self._set_mark(found := secrets.token_hex(16))
        return self._same(mark, found)

    def require_agreed(self, mark: str | None) -> None:
        """Whether a server would be let in, where others have agreed on `mark`. Raises MediaPlaceUnusable."""
        if mark is not None:
            self._same(mark, self._mark())

    def _same(self, mark: str | None, found: str | None) -> str:
        if found is None or mark not in (None, found):
            raise MediaPlaceUnusable(
                f"MEDIA_URL = {self.media_url!r} is not where the other servers of this database keep their "
                f"files: its file {_MARK} is {'missing' if found is None else 'of another place'}. Look at "
                "the address, and whether a folder is mounted. Where the files were moved on purpose, move "
                f"{_MARK} along with them."
            )
        return found

    def _mark(self) -> str | None:
        try:
            if (folder := folder_of(self.media_url)) is not None:
                return (folder / _MARK).read_text().strip()
            return self._bucket().get(_MARK).decode().strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise self._unusable(exc) from exc

    def _set_mark(self, mark: str) -> None:
        try:
            if (folder := folder_of(self.media_url)) is not None:
                (folder / _MARK).write_text(mark)
            else:
                self._bucket().put(_MARK, mark.encode())
        except (OSError, StoreFailed) as exc:
            raise self._unusable(exc) from exc

    def notices(self, name: str) -> Notices:
        from server.jobs.postgres_notices import Notices

        return Notices(self.database_url, name=name)

    def open_bodies(self) -> BodyStore:
        """Blocks, and tries a write. A folder is not made: it may only be missing because it is not mounted.

        Raises MediaPlaceUnusable.
        """
        folder = folder_of(self.media_url)
        if folder is not None and not folder.is_dir():
            raise MediaPlaceUnusable(
                f"MEDIA_URL = {self.media_url!r} is no folder that is there. Mount it, or make it, for all "
                "servers."
            )
        try:
            bodies = self._bodies()
            bodies.probe()
        except Exception as exc:
            raise self._unusable(exc) from exc
        return bodies

    def _unusable(self, exc: Exception) -> MediaPlaceUnusable:
        reason = _in_a_line(str(exc.__cause__ or exc))
        return MediaPlaceUnusable(
            f"MEDIA_URL = {self.media_url!r} cannot be written: {reason}. Look at the "
            "address, and at the owner of a folder; or at the variables AWS_ENDPOINT_URL, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a bucket."
        )

    def _bodies(self) -> BodyStore:
        if (folder := folder_of(self.media_url)) is not None:
            return JobBodies(_made(folder / "bodies"))
        from server.jobs.object_files import ObjectBodies

        return ObjectBodies(self._bucket())

    def media(self) -> MediaStore:
        if (folder := folder_of(self.media_url)) is not None:
            return MediaFiles(folder / "media")
        from server.jobs.object_files import ObjectMedia

        return ObjectMedia(self._bucket())

    def _bucket(self) -> ObjectFolder:
        from server.jobs.object_files import ObjectFolder

        return ObjectFolder(self.media_url)

    def make_media_folder(self) -> None:
        if (folder := folder_of(self.media_url)) is not None:
            _made(folder / "media")


class SharedBodies:
    """Bodies where all servers reach them; photos on this machine, where its workers read them."""

    def __init__(self, bodies: BodyStore, photos: JobBodies) -> None:
        self._bodies = bodies
        self._photos = photos

    def write(self, job_id: str, body: bytes) -> None:
        self._bodies.write(job_id, body)

    def read(self, job_id: str) -> bytes:
        return self._bodies.read(job_id)

    def write_photo(self, job_id: str, number: int, data: bytes) -> Path:
        return self._photos.write_photo(job_id, number, data)

    def photo_path(self, job_id: str, number: int) -> Path:
        return self._photos.photo_path(job_id, number)

    def delete(self, job_id: str) -> None:
        self._photos.delete(job_id)
        self._bodies.delete(job_id)

    def forget(self, job_id: str) -> None:
        """What is on this machine."""
        self._photos.delete(job_id)

    def delete_others(self, job_ids: Collection[str], *, older_than_s: float = 0.0) -> None:
        self._bodies.delete_others(job_ids, older_than_s=older_than_s)

    def forget_others(self, job_ids: Collection[str]) -> None:
        self._photos.delete_others(job_ids)

    def probe(self) -> None:
        self._photos.probe()
        self._bodies.probe()


def folder_of(media_url: str) -> Path | None:
    """The folder of a file:// address."""
    parts = urlsplit(media_url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _in_a_line(said: str) -> str:
    """What a driver says may go on with the XML that the store has answered: its words without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", said).split())[:SAID].rstrip(".")


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
