"""JobLeases: which jobs are this server's, where several share them.

Beats, so that the others know that it lives; lets go of jobs that are another's by now; takes up what
the dead have left and what waits elsewhere while its own devices idle. Lives on the event loop. Does
not know what it means to take up a job or to lose one (`runner.py`), nor how either is written
(`postgres_store.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from pulid.errors import PulidError, SetupError
from server.jobs.job import JobRecord, LeaseLost, StoreFailed
from server.jobs.live import LiveJob
from server.jobs.progress import OwnProgress, Progress, ProgressElsewhere
from server.jobs.storage import JobStorage
from server.logs import get_logger, trace_of
from server.metrics import JobMetrics

log = get_logger("leases")

LOOK_EVERY_S = 1.0  # for the dead, and for work
TELL_EVERY_S = 0.5  # which steps are done


class JobLeases:
    def __init__(
        self,
        *,
        storage: JobStorage,
        live: Mapping[str, LiveJob],
        metrics: JobMetrics,
        room: Callable[[], int | None],
        take_up: Callable[[JobRecord], Coroutine[Any, Any, None]],
        lose: Callable[[LiveJob], None],
        on_usurped: Callable[[PulidError], None],
    ) -> None:
        """`room`: how many more jobs the devices could hold now; None: no job would be done here.

        `on_usurped` hears that the name is gone.
        """
        self._storage = storage
        self._live = live
        self._metrics = metrics
        self.progress = ProgressElsewhere()
        self._room = room
        self._take_up = take_up
        self._lose = lose
        self._on_usurped = on_usurped
        self._changed = WeakValueDictionary[str, asyncio.Event]()
        self._taking: set[str] = set()  # jobs that are being taken up
        self._unknown: set[str] = set()  # ours at the last beat, though nobody here knows them
        self._forgotten: set[str] = set()  # and at the one before: not a row or an end just being written
        self._doubt = asyncio.Event()
        self._look = asyncio.Event()

    def changed(self, job_id: str) -> asyncio.Event:
        """Set when another server says that the job has changed."""
        return self._changed.setdefault(job_id, asyncio.Event())

    def wake(self) -> None:
        """There may be room for work, or work."""
        self._look.set()

    def hear(self, job_id: str) -> None:
        """A notice of another server; "": a job waits."""
        self.progress.forget(job_id)
        if (changed := self._changed.pop(job_id, None)) is not None:
            changed.set()
        if job_id in self._live:
            self._doubt.set()  # whose is it?
        if not job_id and (self._room() or 0) > 0:
            self.wake()

    def hear_steps(self, told: str) -> None:
        for job_id in self.progress.hear(told):
            if (changed := self._changed.pop(job_id, None)) is not None:
                changed.set()

    async def keep(self) -> None:
        """For ever. What is taken up may take long to read; the beats go on beside it."""
        beside = [
            asyncio.ensure_future(self._again_and_again(self._work, self._look)),
            asyncio.ensure_future(self._tell_steps()),
        ]
        try:
            await self._again_and_again(self._beat, self._doubt)
        finally:
            for task in beside:
                task.cancel()

    async def _tell_steps(self) -> None:
        own = OwnProgress()
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            done = {
                job.id: Progress(job.step, job.seconds_left)
                for job in self._live.values()
                if job.step and job.record.api == "v2" and not job.ending
            }
            if told := own.news(done):
                await self._storage.tell_steps(told)

    async def _again_and_again(
        self, do: Callable[[], Coroutine[Any, Any, None]], sooner: asyncio.Event
    ) -> None:
        while True:
            sooner.clear()
            try:
                await do()
            except StoreFailed:
                pass  # storage has logged it; leases go on for a while
            except SetupError as exc:
                self._on_usurped(exc)
                return
            except Exception as exc:
                log.error("leases fault", **trace_of(exc))
            with suppress(TimeoutError):
                await asyncio.wait_for(sooner.wait(), LOOK_EVERY_S)

    async def _work(self) -> None:
        """Take up what was forgotten here, then as much as there is room for."""
        for job_id in sorted(self._forgotten - self._live.keys()):
            record = await self._storage.get(job_id)
            if record is not None and not record.state.has_ended:
                await self._take(record)
        while (room := self._room()) is not None:
            # Where all are busy for long, each takes one of nobody's at a time: it has waited before.
            claimed = await self._storage.claim(max(room, 1), of_the_busy=room > 0)
            taken = [await self._take(record) for record in claimed]
            self._metrics.taken_over(sum(taken))
            if any(taken):
                log.info("jobs taken up", jobs=sum(taken))
            if room <= 0 or len(taken) < room or not all(taken):
                return

    async def _beat(self) -> None:
        """Afterwards every live job is ours, and the other way round."""
        before = {
            job: job.record.media_id for job in self._live.values() if job.stored.is_set() and not job.lost
        }
        held = await self._storage.beat()
        for job, media_id in before.items():
            if held.get(job.id) != media_id and not job.ending and not job.lost:
                self._lose(job)
        self._metrics.leases(len(held))
        unknown = held.keys() - self._live.keys() - self._taking
        self._forgotten = unknown & self._unknown
        self._unknown = unknown
        if self._forgotten:
            self.wake()

    async def _take(self, record: JobRecord) -> bool:
        """False: it cannot be taken up now. It is still ours, and found by a later beat."""
        if (old := self._live.get(record.id)) is not None:
            if old.record.media_id == record.media_id:
                return True
            self._lose(old)
        self._taking.add(record.id)
        try:
            await self._take_up(record)
        except (StoreFailed, LeaseLost):
            return False
        finally:
            self._taking.discard(record.id)
        return True
