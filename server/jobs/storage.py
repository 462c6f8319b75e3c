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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from server.jobs.data_dir import DataDir
from server.jobs.files import JobBodies, MediaFiles, free_bytes
from server.jobs.job import EarlierSubmit, JobFile, JobRecord, JobState, StoreFailed
from server.jobs.store import JobStore, SqliteJobStore
from server.logs import get_logger, trace_of

log = get_logger("storage")

T = TypeVar("T")

MIN_FREE_BYTES = 256 * 2**20  # below this nothing new is accepted
TRY_AGAIN_S = 2.0  # until what the disk has refused is tried again


class JobStorage:
    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._data_dir = DataDir(root)
        self._min_free_bytes = min_free_bytes
        self._is_failing = False
        self._undeleted: set[str] = set()  # media whose rows are gone, and whose files would not go

    async def open(self) -> None:
        """Raises SetupError when the folder is in use or its database cannot be used."""
        self._data_dir.open()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        try:
            self._bodies = await self._db(JobBodies.open, self._data_dir.bodies)
            self._media = await self._db(MediaFiles.open, self._data_dir.media)
            self._store: JobStore = await self._db(SqliteJobStore.open, self._data_dir.database)
        except BaseException:
            self._thread.shutdown()
            self._data_dir.close()
            raise

    async def close(self) -> None:
        await self._db(self._store.close)
        self._thread.shutdown()
        self._data_dir.close()

    @property
    def media_folder(self) -> Path:
        return self._data_dir.media

    @property
    def free_bytes(self) -> int:
        return free_bytes(self._data_dir.root)

    @property
    def is_low(self) -> bool:
        return self.free_bytes < self._min_free_bytes

    @property
    def is_failing(self) -> bool:
        """The last write did not go well."""
        return self._is_failing

    async def room(self) -> None:
        """Return when what the disk has refused may be tried again."""
        while True:
            await asyncio.sleep(TRY_AGAIN_S)
            if not (self.is_low or self.is_failing):
                return

    async def probe(self) -> None:
        """Where the last write did not go well, try whether one does now."""

        def probe() -> None:
            self._bodies.probe()
            self._store.probe()

        if self._is_failing:
            with suppress(StoreFailed), self._writing():
                await self._db(probe)

    # records

    async def insert(
        self, record: JobRecord, body: bytes, *, idempotency_key: str | None, keep_body: bool
    ) -> JobRecord:
        """The body on disk, if it is to be kept, then the row.

        Returns the row, which may be an earlier one of the same Idempotency-Key.

        Raises StoreFailed or IdempotencyConflict; then nothing is left behind.
        """

        def insert(digest: bytes) -> JobRecord:
            stored: JobRecord | None = None
            try:
                stored = self._store.insert(record, idempotency_key=idempotency_key, body_digest=digest)
            finally:
                if stored is None or stored.id != record.id:
                    self._bodies.delete(record.id)
            return stored

        with self._writing():
            digest = b"" if idempotency_key is None else await digest_of(body)
            if keep_body:
                await anyio.to_thread.run_sync(self._bodies.write, record.id, body)
            return await self._db(insert, digest)

    async def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None:
        return await self._db(self._store.earlier, key, idempotency_key)

    async def get(self, job_id: str) -> JobRecord | None:
        return await self._db(self._store.get, job_id)

    async def unfinished(self) -> list[JobRecord]:
        return await self._db(self._store.unfinished)

    async def save(self, record: JobRecord) -> None:
        """Raises StoreFailed."""
        with self._writing():
            await self._db(self._store.save, record)

    async def try_save(self, record: JobRecord) -> None:
        """Save a state that a later one will overwrite; a full disk is no reason to stop."""
        with suppress(StoreFailed):
            await self.save(record)

    async def save_end(self, record: JobRecord, *, media_ttl_s: float) -> None:
        """The last row of a job; its body and photos go. Raises StoreFailed."""

        def save() -> None:
            self._store.save(record, media_expires_at=time.time() + media_ttl_s)
            self._bodies.delete(record.id)
            if record.state is JobState.FAILED and record.tries:
                self._media.delete(record.media_id)  # of a worker that was killed before it told of them

        with self._writing():
            await self._db(save)

    async def delete(self, record: JobRecord) -> None:
        """A job that has ended, with its pictures."""
        await self._db(self._store.delete, record.id)
        await self._db(self._delete_all_media, [record.media_id])

    # bodies, photos, pictures

    async def read_body(self, job_id: str) -> bytes:
        return await anyio.to_thread.run_sync(self._bodies.read, job_id)

    async def delete_body(self, job_id: str) -> None:
        """What is there of the body and the photos of a job that has no row."""
        await self._db(self._bodies.delete, job_id)

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
                with self._writing():
                    path = self._bodies.write_photo(job_id, number, data)
            except StoreFailed as exc:
                return type(exc)()
            if not is_wanted():
                path.unlink(missing_ok=True)
            return None

        return await anyio.to_thread.run_sync(write)

    def photo_paths(self, job_id: str, count: int) -> tuple[Path, ...]:
        return tuple(self._bodies.photo_path(job_id, number) for number in range(count))

    async def media_file(self, media_id: str, name: str) -> tuple[Path, JobFile] | None:
        file = await self._db(self._store.media_file, media_id, name)
        return None if file is None else (self._media.path(media_id, name), file)

    async def read_pictures(self, record: JobRecord) -> list[bytes]:
        def read() -> list[bytes]:
            return [self._media.path(record.media_id, file.name).read_bytes() for file in record.files]

        return await anyio.to_thread.run_sync(read)

    async def delete_media(self, media_id: str) -> None:
        await anyio.to_thread.run_sync(self._media.delete, media_id)

    # housekeeping

    async def sweep(self, result_ttl_s: float) -> None:
        """Delete records and pictures whose time is over."""

        def sweep() -> None:
            expired = self._store.sweep(now=time.time(), result_ttl_s=result_ttl_s)
            self._delete_all_media([*self._undeleted, *expired])

        await self._db(sweep)

    async def clear_orphans(self, *, jobs: set[str], media: set[str]) -> None:
        """Delete files that neither these live jobs nor any record knows."""

        def clear() -> None:
            self._bodies.delete_others(jobs)
            for media_id in set(self._media.media_ids()) - self._store.known_media() - media:
                self._media.delete(media_id)

        await self._db(clear)

    def _delete_all_media(self, media_ids: Iterable[str]) -> None:
        """Pictures that no row knows any more. What will not go now is tried again by each sweep."""
        for media_id in media_ids:
            try:
                self._media.delete(media_id)
            except OSError as exc:
                self._undeleted.add(media_id)
                log.error("pictures not deleted", **trace_of(exc))
            else:
                self._undeleted.discard(media_id)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what writes: what fails is StoreFailed, and remembered until something goes well."""
        try:
            yield
        except (StoreFailed, OSError) as exc:
            if not self._is_failing:
                log.warning("data folder not written", **trace_of(exc))
            self._is_failing = True
            if isinstance(exc, OSError):
                raise StoreFailed from exc
            raise
        self._is_failing = False

    async def _db(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


async def digest_of(body: bytes) -> bytes:
    """What tells two bodies of one Idempotency-Key apart."""
    return await anyio.to_thread.run_sync(lambda: hashlib.sha256(body).digest())
