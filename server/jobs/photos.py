"""The photos of a job, from its request to the disk, where its worker reads them.

Fetches what came as a URL, a few at once for each key; decodes what came as text; waits where the disk
takes nothing, as long as the job does. Does not know queues, devices and ends of jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext, suppress
from itertools import zip_longest
from typing import TypeVar

from server.jobs.at_hand import mark_of
from server.jobs.face_stage import FaceStage, is_url
from server.jobs.live import LiveJob, ParsedBody
from server.jobs.storage import JobStorage
from server.metrics import JobMetrics

T = TypeVar("T")

ParseBody = Callable[[bytes], ParsedBody]  # raises BadRequest

PARSES_AT_ONCE = 4  # of all callers: a large mask takes 200 MB while it is decoded
FETCHES_AT_ONCE = 8  # of one key; a fetched photo is in memory until it is on disk


class JobPhotos:
    def __init__(
        self, *, storage: JobStorage, face_stage: FaceStage, parse: ParseBody, metrics: JobMetrics
    ) -> None:
        self._storage = storage
        self._face_stage = face_stage
        self._parse = parse
        self._metrics = metrics
        self._parse_slots = asyncio.Semaphore(PARSES_AT_ONCE)
        self._fetch_slots = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(FETCHES_AT_ONCE))

    async def bring(self, job: LiveJob, parsed: ParsedBody) -> None:
        """Return when they are on disk. Raises ImageRejected, or StoreFailed for a v1 job.

        A v2 job waits for the disk, and its photos are then taken from its body once more.
        """
        while not await self._store_all(job, parsed):
            del parsed  # the body on disk has it
            parsed = await self._parsed_again(job)

    async def read_body(self, job_id: str) -> ParsedBody:
        """What a v2 job was submitted with. Raises OSError or BadRequest."""
        async with self._parse_slots:
            return await asyncio.to_thread(self._parse, await self._storage.read_body(job_id))

    async def _store_all(self, job: LiveJob, parsed: ParsedBody) -> bool:
        """False: the disk does not take them now, and a v2 job may wait; a v1 caller hears of it."""
        if job.trace is not None:
            job.trace.fetching()
        photos = zip_longest(parsed.photos, parsed.places, fillvalue="")
        marks: dict[int, int] = {}
        stored = [self._store(job, number, *photo, marks) for number, photo in enumerate(photos)]
        are_stored = all(await all_of(stored))
        job.photo_marks = tuple(marks.values())
        if job.trace is not None:
            job.trace.fetched()
        return are_stored

    async def _store(self, job: LiveJob, number: int, photo: str, place: str, marks: dict[int, int]) -> bool:
        async with self._fetch_slots[job.record.key] if is_url(photo) else nullcontext():
            started = time.perf_counter()
            source = await self._face_stage.source(photo, place)

            def read() -> bytes:
                data = source()
                marks[number] = mark_of(data)
                self._metrics.stage("fetch", time.perf_counter() - started)
                return data

            refusal = await self._storage.write_photo(job.id, number, read, is_wanted=lambda: not job.ending)
        if refusal is not None and job.record.api == "v1":
            raise refusal
        return refusal is None

    async def _parsed_again(self, job: LiveJob) -> ParsedBody:
        while True:
            await self._storage.room()
            with suppress(OSError):  # no file handle is free; its deadline ends the wait
                return await self.read_body(job.id)


def need_no_fetch(parsed: ParsedBody) -> bool:
    """Whether all that the photos are is in the request itself."""
    return not any(map(is_url, parsed.photos))


async def all_of(works: Iterable[Awaitable[T]]) -> list[T]:
    """What each of them returns, side by side. The first that fails ends the others, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
