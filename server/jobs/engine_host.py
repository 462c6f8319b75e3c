"""One engine that others call: a job is a call, its events are the answer.

    async for event in host.paint(order, photos): ...

The engine lives in a worker process, started and watched by a pool of one device, as in a server of
its own. A call that is left is a job that is cancelled. Lives on an event loop. Does not know who
calls, over which wire, or what a job is worth.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pulid.engine import EngineInfo, RgbImage
from pulid.errors import PulidError
from server.jobs.files import MediaStore
from server.jobs.job import NotReady
from server.jobs.messages import (
    Answer,
    AskFailed,
    Cancel,
    DeviceFault,
    EngineFailedToLoad,
    EngineReady,
    FacesFound,
    Finished,
    IdentityMade,
    JobFailed,
    Loading,
    OutOfService,
    Prepare,
    Question,
    Watch,
    WorkerDied,
    WorkerEvent,
)
from server.jobs.worker_pool import WorkerPool
from server.loading import CreateEngine
from server.logs import get_logger
from server.settings import LogFormat, LogLevel

log = get_logger("engine")

STOP_S = 10.0  # for the step that is running when the host ends


class EngineHost:
    def __init__(
        self,
        *,
        device: str,
        create_engine: CreateEngine,
        decode_photo: Callable[[bytes], RgbImage],
        media: MediaStore,
        stall_floor_s: float = 60.0,
        log_level: LogLevel = "info",
        log_format: LogFormat | None = None,
    ) -> None:
        self.info: EngineInfo | None = None
        self.fault: PulidError | None = None  # no engine will work here any more
        self._device = device
        self._ready = asyncio.Event()  # it has an engine, or never will
        self._turns = _Turns()
        self._jobs: dict[str, asyncio.Queue[WorkerEvent]] = {}
        self._questions: dict[str, asyncio.Future[Answer]] = {}
        self._pool = WorkerPool(
            devices=(device,),
            create_engine=create_engine,
            decode_photo=decode_photo,
            media=media,
            on_event=self._hear,
            stall_floor_s=stall_floor_s,
            log_level=log_level,
            log_format=log_format,
        )

    async def start(self) -> EngineInfo:
        """Load the engine. Raises the error of one that does not load, or dies again and again."""
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="flux-pulid-photos-"))
        await self._pool.start()
        await self._ready.wait()
        return self.require_engine()

    def require_engine(self) -> EngineInfo:
        """Raises why there is none."""
        if self.fault is not None:
            raise self.fault
        if self.info is None:
            raise NotReady("The engine is not loaded.")
        return self.info

    async def close(self) -> None:
        """End now, also in the middle of a step."""
        await self._pool.stop(STOP_S)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def paint(self, order: Prepare, photos: Sequence[bytes]) -> AsyncGenerator[WorkerEvent, None]:
        """The events of a job, the last of them Finished, JobFailed or WorkerDied. Leave it to cancel it."""
        async with self._turns.turn(alone=order.alone):
            await self._ready.wait()
            self.require_engine()
            heard = self._jobs[order.job_id] = asyncio.Queue()
            paths: tuple[Path, ...] = ()
            has_ended = False
            try:
                paths = await asyncio.to_thread(self._write, order.job_id, photos)
                self._pool.send(self._device, replace(order, photos=paths, is_admitted=True))
                while not has_ended:
                    event = await heard.get()
                    has_ended = isinstance(event, Finished | JobFailed | WorkerDied)
                    yield event
            finally:
                if self._jobs.get(order.job_id) is heard:
                    del self._jobs[order.job_id]
                    if not has_ended:
                        self._pool.send(self._device, Cancel(order.job_id))
                for path in paths:
                    path.unlink(missing_ok=True)

    async def ask(self, question: Question) -> Answer:
        """Which faces, or what identity; AskFailed where the worker dies over it."""
        async with self._turns.turn():
            await self._ready.wait()
            self.require_engine()
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._questions[question.question_id] = answer
            self._pool.send(self._device, question)
            try:
                return await answer
            finally:
                self._questions.pop(question.question_id, None)

    def watch(self, job_id: str, on: bool) -> None:
        """Whether somebody looks at previews of a job; one that is not here is no matter."""
        if job_id in self._jobs:
            self._pool.send(self._device, Watch(job_id, on))

    def _write(self, job_id: str, photos: Sequence[bytes]) -> tuple[Path, ...]:
        paths = tuple(self._folder / f"{job_id}-{number}" for number in range(len(photos)))
        for path, data in zip(paths, photos, strict=True):
            path.write_bytes(data)
        return paths

    # what the worker says

    def _hear(self, device: str, event: WorkerEvent) -> None:
        match event:
            case EngineReady(info):
                self.info = info
                self._ready.set()
                log.info("engine ready", device=device, profile=info.profile, **info.details)
            case OutOfService(error):
                self._give_up(error)
            case DeviceFault(reason):
                log.error("device fault", device=device, reason=reason)
            case WorkerDied():
                self._on_death(event)
            case FacesFound() | IdentityMade() | AskFailed():
                self._answered(event)
            case Loading() | EngineFailedToLoad():
                pass  # the worker logs the one; the other is told as OutOfService
            case _:
                if event.job_id in self._jobs:
                    self._jobs[event.job_id].put_nowait(event)

    def _answered(self, event: Answer) -> None:
        answer = self._questions.get(event.question_id)
        if answer is not None and not answer.done():
            answer.set_result(event)

    def _on_death(self, event: WorkerDied) -> None:
        """Each job hears of it, and whether the worker was busy with it."""
        log.error("worker died", device=self._device, exit_code=event.exit_code)
        self._ready.clear()
        for job_id, heard in self._jobs.items():
            running = tuple(other for other in event.running if other == job_id)
            preparing = job_id if event.preparing == job_id else None
            heard.put_nowait(WorkerDied(event.exit_code, running, preparing))
        for question_id in list(self._questions):
            error = NotReady("The engine stopped while it looked at the photo. Try again in a few seconds.")
            self._answered(AskFailed(question_id, error))

    def _give_up(self, error: PulidError) -> None:
        self.fault = error
        self._ready.set()  # whoever waits hears it


class _Turns:
    """A job over which a worker died has the engine for itself; the others share it."""

    def __init__(self) -> None:
        self._here = 0
        self._alone = 0  # jobs that have the engine for themselves, or wait for that
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, *, alone: bool = False) -> AsyncIterator[None]:
        self._alone += alone
        try:
            while self._here if alone else self._alone:
                await self._changed.wait()
            self._here += 1
            try:
                yield
            finally:
                self._here -= 1
        finally:
            self._alone -= alone
            self._changed.set()
            self._changed = asyncio.Event()
