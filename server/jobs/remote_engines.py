"""RemoteEngines: engines that are reached by calls, in the place of a pool of worker processes.

Each of its devices is a place for one call: a job is sent as a call, what the engine says comes back as
the call's events, and a call that breaks is told as the death of a worker, so that the job is tried
again. Which engine answers is not known and does not matter: whoever carries the calls spreads them.

Lives on the event loop. Does not know the wire (`server/ray_serve.py` has one) or what a job is worth.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from pulid.engine import EngineInfo
from pulid.errors import EngineFailed
from server.jobs.job import NotReady
from server.jobs.messages import (
    Admit,
    Answer,
    AskFaces,
    AskFailed,
    AskIdentity,
    Cancel,
    EngineReady,
    Finished,
    JobFailed,
    Prepare,
    Prepared,
    Preparing,
    Question,
    Stepping,
    Stop,
    ToWorker,
    Watch,
    WorkerDied,
    WorkerEvent,
)
from server.logs import get_logger, trace_of

log = get_logger("engines")

TRY_AGAIN_S = 1.0  # after a call that broke
_NO_ANSWER = "The engine stopped while it looked at the photo. Try again in a few seconds."


class Engines(Protocol):
    """Calls that any of several engines answers; `engine_host.py` says how. One that breaks raises."""

    async def info(self) -> EngineInfo:
        """Of one of them, once there is one."""

    def paint(self, order: Prepare, photos: Sequence[bytes]) -> AsyncGenerator[WorkerEvent, None]: ...

    async def ask(self, question: Question) -> Answer: ...

    async def watch(self, job_id: str, on: bool) -> None:
        """Told to all of them, for one has the job."""


class _Call:
    """One attempt at a job: what has been heard of it."""

    def __init__(self, device: str, order: Prepare) -> None:
        self.device = device
        self.order = order
        self.task: asyncio.Task[None] | None = None
        self.is_watched = False
        self.is_known = False  # an engine has it
        self.has_ended = False
        self._is_preparing = self._is_running = False

    def heard(self, event: WorkerEvent) -> None:
        self.is_known = True
        match event:
            case Preparing():
                self._is_preparing = True
            case Prepared():
                self._is_preparing = False
            case Stepping():
                self._is_running = True
            case Finished() | JobFailed() | WorkerDied():
                self.has_ended = True

    def death(self) -> WorkerDied:
        """What its engine was doing with it, when nobody is left to ask."""
        job_id = self.order.job_id
        return WorkerDied(None, (job_id,) if self._is_running else (), job_id if self._is_preparing else None)


class RemoteEngines:
    looks_ahead = False  # its engines do: there are more places than engines

    def __init__(
        self,
        *,
        devices: Sequence[str],
        engines: Engines,
        on_event: Callable[[str, WorkerEvent], None],
    ) -> None:
        self._devices = tuple(devices)
        self._engines = engines
        self._on_event = on_event
        self._info: EngineInfo | None = None
        self._calls: dict[str, _Call] = {}  # by job
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False

    async def start(self) -> None:
        """Returns before there is an engine."""
        self._spawn(self._find_engine())

    def send(self, device: str, message: ToWorker) -> None:
        match message:
            case Prepare():
                call = self._calls[message.job_id] = _Call(device, message)
                call.task = self._spawn(self._paint(call))
            case Cancel(job_id):
                if (left := self._calls.pop(job_id, None)) and left.task is not None:
                    left.task.cancel()
            case Watch(job_id, on):
                if watched := self._calls.get(job_id):
                    watched.is_watched = on
                    if watched.is_known:
                        self._spawn(self._watch(job_id, on))
            case AskFaces() | AskIdentity():
                self._spawn(self._ask(device, message))
            case Admit() | Stop():
                pass  # a job is sent when it may begin, and engines end by themselves

    def start_no_more(self) -> None:
        """From now on a call that breaks is only reported."""
        self._is_draining = True

    async def stop(self, timeout_s: float) -> None:
        """Leave all calls, which ends their jobs before their next step."""
        self._is_draining = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _find_engine(self) -> None:
        while self._info is None:
            try:
                self._info = await self._engines.info()
            except Exception as exc:
                log.warning("no engine has answered", **trace_of(exc))
                await asyncio.sleep(TRY_AGAIN_S)
        for device in self._devices:
            self._on_event(device, EngineReady(self._info))

    async def _paint(self, call: _Call) -> None:
        job_id = call.order.job_id
        try:
            await self._hear(call, await asyncio.to_thread(_read, call.order.photos))
        except _PhotosGone as exc:
            self._on_event(call.device, JobFailed(job_id, EngineFailed(str(exc))))
        except Exception as exc:
            log.error("call of an engine broke", job_id=job_id, **trace_of(exc))
            self._broken(call.device, call.death())
        finally:
            if self._calls.get(job_id) is call:
                del self._calls[job_id]

    async def _hear(self, call: _Call, photos: Sequence[bytes]) -> None:
        async with aclosing(self._engines.paint(call.order, photos)) as events:
            async for event in events:
                if call.is_watched and not call.is_known:
                    self._spawn(self._watch(call.order.job_id, True))
                call.heard(event)
                if isinstance(event, WorkerDied):
                    self._broken(call.device, event)
                else:
                    self._on_event(call.device, event)
        if not call.has_ended:
            self._broken(call.device, call.death())

    def _broken(self, device: str, death: WorkerDied) -> None:
        """The place is empty for a moment; the job goes to another, and so to another engine."""
        self._on_event(device, death)
        if not self._is_draining:
            self._spawn(self._open_again(device))

    async def _open_again(self, device: str) -> None:
        await asyncio.sleep(TRY_AGAIN_S)
        if self._info is not None:
            self._on_event(device, EngineReady(self._info))

    async def _ask(self, device: str, question: Question) -> None:
        try:
            answer = await self._engines.ask(question)
        except Exception as exc:
            log.error("question to an engine broke", **trace_of(exc))
            answer = AskFailed(question.question_id, NotReady(_NO_ANSWER))
        self._on_event(device, answer)

    async def _watch(self, job_id: str, on: bool) -> None:
        try:
            await self._engines.watch(job_id, on)
        except Exception as exc:
            log.warning("engines did not hear of a watcher", job_id=job_id, **trace_of(exc))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _PhotosGone(Exception):
    pass


def _read(photos: Sequence[Path]) -> tuple[bytes, ...]:
    try:
        return tuple(path.read_bytes() for path in photos)
    except OSError as exc:
        raise _PhotosGone("The picture could not be made: its photo cannot be read.") from exc
