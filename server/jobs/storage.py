"""The disk as the event loop sees it: database, bodies and pictures, none of which may block it.

All calls to the database go through one thread, in order; large files are written in others. Knows
where things lie and in which order they are written, so that a kill between two writes leaves
nothing half done that a start cannot clear away; and from how the last write went, whether the
folder takes any. Does not know what a job means.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from server.jobs.data_dir import DataDir
from server.jobs.files import JobBodies, MediaFiles, MediaStore, free_bytes
from server.jobs.job import (
    EarlierSubmit,
    IdempotencyConflict,
    JobFile,
    JobRecord,
    JobState,
    KeyHasEnough,
    LeaseLost,
    StoreFailed,
)
from server.jobs.places import SharedBodies, SharedPlaces
from server.jobs.store import JobStore, SharedJobStore, SqliteJobStore
from server.logs import get_logger, trace_of

log = get_logger("storage")

T = TypeVar("T")

MIN_FREE_BYTES = 256 * 2**20  # below this nothing new is accepted
BODY_WITHOUT_JOB_S = 300.0  # a body is written before its row, and its row ends before it is deleted
MEDIA_WITHOUT_JOB_S = 3600.0
_RECORDS, _FILES, _PHOTOS = "records", "files", "photos"  # what is written, to places of their own
TRY_AGAIN_S = 2.0  # until what the disk has refused is tried again


class JobStorage:
    def __init__(
        self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES, shared: SharedPlaces | None = None
    ) -> None:
        """`shared`: where several servers keep records, bodies and pictures; None: all is under `root`."""
        self._data_dir = DataDir(root)
        self._min_free_bytes = min_free_bytes
        self.shared = shared
        self.media: MediaStore = MediaFiles(self._data_dir.media) if shared is None else shared.media()
        self.leases: SharedJobStore | None = None  # the store, where it is one of several servers
        self._media_cleared_at = 0.0
        self._failing: dict[str, str] = {}  # by place: why its last write did not go well
        self._undeleted: set[str] = set()  # media whose rows are gone, and whose files would not go

    async def open(self) -> None:
        """Raises SetupError when the folder is in use or its database cannot be used."""
        self._data_dir.open()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        try:
            await self._db(self._open if self.shared is None else partial(self._open_shared, self.shared))
        except BaseException:
            self._thread.shutdown()
            self._data_dir.close()
            raise

    def _open(self) -> None:
        self._bodies: JobBodies | SharedBodies = JobBodies.open(self._data_dir.bodies)
        MediaFiles.open(self._data_dir.media)
        self._store: JobStore = SqliteJobStore.open(self._data_dir.database)

    def _open_shared(self, shared: SharedPlaces) -> None:
        shared.require_extra()
        self.server_id = self._data_dir.server_id()
        self._bodies = SharedBodies(shared.open_bodies(), JobBodies.open(self._data_dir.bodies))
        shared.make_media_folder()
        self._store = self.leases = shared.open_store(self.server_id)

    async def close(self) -> None:
        await self._db(self._store.close)
        self._thread.shutdown()
        self._data_dir.close()

    @property
    def free_bytes(self) -> int:
        return free_bytes(self._data_dir.root)

    @property
    def is_low(self) -> bool:
        return self.free_bytes < self._min_free_bytes

    @property
    def failing(self) -> str | None:
        """Why the last write did not go well."""
        return next(iter(self._failing.values()), None)

    async def room(self) -> None:
        """Return when what the disk has refused may be tried again."""
        while True:
            await asyncio.sleep(TRY_AGAIN_S)
            if not (self.is_low or self.failing):
                return

    async def probe(self) -> None:
        """Where the last write did not go well, try whether one does now."""
        if not self._failing:
            return
        with suppress(StoreFailed), self._writing(_FILES), self._writing(_PHOTOS):
            await self._files(self._bodies.probe)
            if self.shared is None:
                await self._db(self._store.probe)
        if self.shared is not None:
            with suppress(StoreFailed), self._writing(_RECORDS):
                await self._db(self._store.probe)

    # records

    async def insert(
        self, record: JobRecord, body: bytes, *, idempotency_key: str | None, keep_body: bool
    ) -> JobRecord:
        """The body on disk, if it is to be kept, then the row.

        Returns the row, which may be an earlier one of the same Idempotency-Key.

        Raises StoreFailed, IdempotencyConflict or KeyHasEnough; then nothing is left behind.
        """

        def insert(digest: bytes) -> JobRecord:
            stored: JobRecord | None = None
            try:
                stored = self._store.insert(record, idempotency_key=idempotency_key, body_digest=digest)
            finally:
                if self.shared is None and (stored is None or stored.id != record.id):
                    self._bodies.delete(record.id)
            return stored

        digest = b"" if idempotency_key is None else await digest_of(body)
        if keep_body:
            with self._writing(_FILES):
                await anyio.to_thread.run_sync(self._bodies.write, record.id, body)
        with self._writing(_RECORDS):
            if self.shared is None:
                return await self._db(insert, digest)
            return await self._insert_shared(record, partial(insert, digest))

    async def _insert_shared(self, record: JobRecord, insert: Callable[[], JobRecord]) -> JobRecord:
        """Where the connection breaks nobody knows whether there is a row: the body stays for a while."""
        try:
            stored = await self._db(insert)
        except (IdempotencyConflict, KeyHasEnough):
            await self._tidy(partial(self._bodies.delete, record.id))
            raise
        if stored.id != record.id:
            await self._tidy(partial(self._bodies.delete, record.id))
        return stored

    async def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None:
        return await self._db(self._store.earlier, key, idempotency_key)

    async def get(self, job_id: str) -> JobRecord | None:
        return await self._db(self._store.get, job_id)

    async def unfinished(self) -> list[JobRecord]:
        return await self._db(self._store.unfinished)

    async def save(self, record: JobRecord) -> None:
        """Raises StoreFailed."""
        with self._writing(_RECORDS), self._gone_is_lost():
            await self._db(self._store.save, record)

    async def try_save(self, record: JobRecord) -> None:
        """Save a state that a later one will overwrite; a full disk is no reason to stop."""
        with suppress(StoreFailed):
            await self.save(record)

    async def save_end(self, record: JobRecord, *, media_ttl_s: float) -> None:
        """The last row of a job; its body and photos go. Raises StoreFailed, or LeaseLost."""

        def clean() -> None:
            self._bodies.delete(record.id)
            if record.state is JobState.FAILED and record.tries:
                self.media.delete(record.media_id)  # of a worker that was killed before it told of them

        def save() -> None:
            self._store.save(record, media_expires_at=time.time() + media_ttl_s)
            if self.shared is None:  # a call waits: not another thread for what is done at once
                clean()

        with self._writing(_RECORDS), self._gone_is_lost():
            await self._db(save)
        if self.shared is not None:
            await self._tidy(clean)

    async def delete(self, record: JobRecord) -> None:
        """A job that has ended, with its pictures."""
        await self._db(self._store.delete, record.id)
        await self._files(self._delete_all_media, [record.media_id])

    # bodies, photos, pictures

    async def read_body(self, job_id: str) -> bytes:
        return await anyio.to_thread.run_sync(self._bodies.read, job_id)

    async def delete_body(self, job_id: str) -> None:
        """What is there of the body and the photos of a job that has no row.

        Of a shared body it is `insert` that knows.
        """
        if isinstance(self._bodies, SharedBodies):
            await self._files(self._bodies.forget, job_id)
        else:
            await self._files(self._bodies.delete, job_id)

    async def write_photo(
        self, job_id: str, number: int, source: Callable[[], bytes], *, is_wanted: Callable[[], bool]
    ) -> StoreFailed | None:
        """None, or why the folder does not take it now. The traceback of a raised error would keep the bytes.

        `source` gives the photo, in the thread that writes it; what it raises is raised. The job may end
        meanwhile, and its files be deleted while the thread still writes: so `is_wanted` is asked there,
        afterwards.
        """

        def write() -> StoreFailed | None:
            data = source()
            try:
                with self._writing(_PHOTOS):
                    path = self._bodies.write_photo(job_id, number, data)
            except StoreFailed as exc:
                return type(exc)()
            if not is_wanted():
                path.unlink(missing_ok=True)
            return None

        return await anyio.to_thread.run_sync(write)

    def photo_paths(self, job_id: str, count: int) -> tuple[Path, ...]:
        return tuple(self._bodies.photo_path(job_id, number) for number in range(count))

    async def picture(self, media_id: str, name: str) -> tuple[bytes, JobFile] | None:
        """Raises FileNotFoundError, or another OSError."""
        file = await self._db(self._store.media_file, media_id, name)
        if file is None:
            return None
        return await anyio.to_thread.run_sync(self.media.read, media_id, name), file

    async def read_pictures(self, record: JobRecord) -> list[bytes]:
        def read() -> list[bytes]:
            return [self.media.read(record.media_id, file.name) for file in record.files]

        return await anyio.to_thread.run_sync(read)

    def pictures_failed(self) -> None:
        """A worker could not store them: a shared place is tried until it takes something again."""
        if self.shared is not None:
            self._failing[_FILES] = "its place for pictures cannot be written"

    async def delete_media(self, media_id: str) -> None:
        await anyio.to_thread.run_sync(self.media.delete, media_id)

    # housekeeping

    async def sweep(self, result_ttl_s: float) -> None:
        """Delete records and pictures whose time is over."""

        expired = await self._db(partial(self._store.sweep, now=time.time(), result_ttl_s=result_ttl_s))
        await self._files(self._delete_all_media, [*self._undeleted, *expired])
        if self.leases is not None:
            await self._clear_shared(self.leases)

    async def clear_orphans(self, *, jobs: set[str], media: set[str]) -> None:
        """Delete files that neither these live jobs nor any record knows."""

        def clear() -> None:
            self._bodies.delete_others(jobs)
            for media_id in self.media.media_ids() - self._store.known_media() - media:
                self.media.delete(media_id)

        if isinstance(self._bodies, SharedBodies):
            await self._files(self._bodies.forget_others, jobs)
        else:
            await self._db(clear)

    async def _clear_shared(self, leases: SharedJobStore) -> None:
        """What servers that died have left. Bodies hold photos, so they go soon; pictures may wait."""
        if not await self._db(leases.keeps_house):
            return
        unfinished = await self._db(leases.unfinished_media)
        await self._files(partial(self._bodies.delete_others, unfinished, older_than_s=BODY_WITHOUT_JOB_S))
        if time.monotonic() < self._media_cleared_at + MEDIA_WITHOUT_JOB_S:
            return
        self._media_cleared_at = time.monotonic()
        there = await self._files(partial(self.media.media_ids, older_than_s=MEDIA_WITHOUT_JOB_S))
        unfinished = await self._db(leases.unfinished_media)
        known = await self._db(leases.known_media)
        await self._files(self._delete_all_media, there - known - set(unfinished.values()))

    # what several servers share

    async def beat(self) -> dict[str, str]:
        """The media id, by job id, of each unfinished job of this server. Raises StoreFailed or NameTaken."""
        with self._writing(_RECORDS):
            held = await self._db(self._shared_store.beat)
            await self._db(self._shared_store.take_from_the_dead)
            return held

    async def claim(self, at_most: int, *, of_the_busy: bool = True) -> list[JobRecord]:
        with self._writing(_RECORDS):
            return await self._db(partial(self._shared_store.claim, at_most, of_the_busy=of_the_busy))

    async def tell_steps(self, told: str) -> None:
        """What cannot be told now is told with the next step."""
        with suppress(StoreFailed):
            await self._db(self._shared_store.tell_steps, told)

    async def give_back(self, job_ids: Collection[str]) -> None:
        """Let other servers have these v2 jobs. What cannot be said now they find out."""
        with suppress(StoreFailed):
            await self._db(self._shared_store.give_back, job_ids)

    async def leave(self) -> None:
        """Let other servers have all. What cannot be said now they find out."""
        if self.leases is not None:
            with suppress(StoreFailed):
                await self._db(self.leases.leave)

    async def seize(self, ended: JobRecord) -> JobRecord | None:
        """End a job that another server has; the record as it is then. None: it is gone."""
        if self.leases is None:
            return await self.get(ended.id)
        with self._writing(_RECORDS):
            stored = await self._db(self.leases.seize, ended)
        await self._tidy(partial(self._bodies.delete, ended.id))  # whoever has ended it
        return stored

    async def forget(self, record: JobRecord) -> None:
        """A job that is another server's by now: what this one made of it."""

        def forget() -> None:
            if isinstance(self._bodies, SharedBodies):
                self._bodies.forget(record.id)
            self.media.delete(record.media_id)

        await self._tidy(forget)

    @property
    def _shared_store(self) -> SharedJobStore:
        if self.leases is None:
            raise RuntimeError("this server shares nothing")
        return self.leases

    async def _tidy(self, work: Callable[[], None]) -> None:
        """Files that no record needs; what is left of them is cleared away later."""
        try:
            await self._files(work)
        except OSError as exc:
            log.warning("files not deleted", **trace_of(exc))

    async def _files(self, call: Callable[..., T], *args: Any) -> T:
        """On this machine's disk in the one thread, in order; elsewhere beside it, for it may take long."""
        if self.shared is None:
            return await self._db(call, *args)
        return await anyio.to_thread.run_sync(call, *args)

    def _delete_all_media(self, media_ids: Iterable[str]) -> None:
        """Pictures that no row knows any more. What will not go now is tried again by each sweep."""
        for media_id in media_ids:
            try:
                self.media.delete(media_id)
            except OSError as exc:
                self._undeleted.add(media_id)
                log.error("pictures not deleted", **trace_of(exc))
            else:
                self._undeleted.discard(media_id)

    @contextmanager
    def _gone_is_lost(self) -> Iterator[None]:
        """A job that another server was told to delete is none of this one's any more. Raises LeaseLost."""
        try:
            yield
        except KeyError as exc:
            if self.shared is None:
                raise
            raise LeaseLost from exc

    @contextmanager
    def _writing(self, kind: str) -> Iterator[None]:
        """Around what writes: what fails is StoreFailed, and remembered until something goes well there.

        All that one server has lies in one place.
        """
        place = _RECORDS if self.shared is None else kind
        try:
            yield
        except (StoreFailed, OSError) as exc:
            if not self._failing:
                log.warning("data folder not written", **trace_of(exc))
            failed = exc if isinstance(exc, StoreFailed) else StoreFailed()
            self._failing[place] = failed.why
            if failed is not exc:
                raise failed from exc
            raise
        self._failing.pop(place, None)

    async def _db(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


async def digest_of(body: bytes) -> bytes:
    """What tells two bodies of one Idempotency-Key apart."""
    return await anyio.to_thread.run_sync(lambda: hashlib.sha256(body).digest())
