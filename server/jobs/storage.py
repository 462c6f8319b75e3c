"""The disk as the event loop sees it: database, bodies and pictures, none of which may block it.

All calls to the database go through one thread, in order. Knows where things lie and in which
order they are written, so that a kill between two writes leaves nothing half done that a start
cannot clear away. Does not know what a job means.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from server.jobs.data_dir import DataDir
from server.jobs.files import JobBodies, MediaFiles, free_bytes
from server.jobs.job import JobFile, JobRecord, StoreFull
from server.jobs.store import SqliteJobStore
from server.logs import get_logger

log = get_logger("storage")

T = TypeVar("T")

MIN_FREE_BYTES = 256 * 2**20  # below this nothing new is accepted


class JobStorage:
    def __init__(self, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._data_dir = DataDir(root)
        self._min_free_bytes = min_free_bytes

    async def open(self) -> None:
        """Raises SetupError when the folder is in use or its database cannot be used."""
        self._data_dir.open()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        try:
            self._bodies = await self._db(JobBodies.open, self._data_dir.bodies)
            self._media = await self._db(MediaFiles.open, self._data_dir.media)
            self._store = await self._db(SqliteJobStore.open, self._data_dir.database)
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
    def is_low(self) -> bool:
        return free_bytes(self._data_dir.root) < self._min_free_bytes

    # records

    async def insert(
        self, record: JobRecord, body: bytes, *, idempotency_key: str | None, keep_body: bool
    ) -> JobRecord:
        """The row on disk, and the body if it is to be kept.

        Returns the row, which may be an earlier one of the same Idempotency-Key.

        Raises StoreFull or IdempotencyConflict; then nothing is left behind.
        """

        def insert() -> JobRecord:
            stored: JobRecord | None = None
            try:
                if keep_body:
                    self._bodies.write(record.id, body)
                digest = hashlib.sha256(body).digest() if idempotency_key is not None else b""
                stored = self._store.insert(record, idempotency_key=idempotency_key, body_digest=digest)
            finally:
                if stored is None or stored.id != record.id:
                    self._bodies.delete(record.id)
            return stored

        return await self._db(insert)

    async def get(self, job_id: str) -> JobRecord | None:
        return await self._db(self._store.get, job_id)

    async def unfinished(self) -> list[JobRecord]:
        return await self._db(self._store.unfinished)

    async def save(self, record: JobRecord) -> None:
        await self._db(self._store.save, record)

    async def try_save(self, record: JobRecord) -> None:
        """Save a state that a later one will overwrite; a full disk is no reason to stop."""
        try:
            await self.save(record)
        except StoreFull:
            log.warning("job state not saved: storage full", job_id=record.id)

    async def save_end(self, record: JobRecord, *, media_ttl_s: float) -> None:
        """The last row of a job; its body and photo go. Raises StoreFull."""

        def save() -> None:
            self._store.save(record, media_expires_at=time.time() + media_ttl_s)
            self._bodies.delete(record.id)

        await self._db(save)

    async def delete(self, record: JobRecord) -> None:
        """A job that has ended, with its pictures."""
        await self._db(self._store.delete, record.id)
        await self.delete_media(record.media_id)

    # bodies, photos, pictures

    async def read_body(self, job_id: str) -> bytes:
        return await anyio.to_thread.run_sync(self._bodies.read, job_id)

    async def write_photo(self, job_id: str, data: bytes) -> None:
        await anyio.to_thread.run_sync(self._bodies.write_photo, job_id, data)

    def photo_path(self, job_id: str) -> Path:
        return self._bodies.photo_path(job_id)

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
            swept = self._store.sweep(now=time.time(), result_ttl_s=result_ttl_s)
            for media_id in swept.media_ids:
                self._media.delete(media_id)

        await self._db(sweep)

    async def clear_orphans(self, *, jobs: set[str], media: set[str]) -> None:
        """Delete files that neither these live jobs nor any record knows."""

        def clear() -> None:
            for job_id in set(self._bodies.job_ids()) - jobs:
                self._bodies.delete(job_id)
            for media_id in set(self._media.media_ids()) - self._store.known_media() - media:
                self._media.delete(media_id)

        await self._db(clear)

    async def _db(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
