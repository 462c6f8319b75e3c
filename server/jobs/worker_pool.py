"""One worker process per device: started, heard, watched, started again after a death, stopped.

All of it lives on the event loop; threads only start processes and collect their exit codes. Neither a
slow pipe nor a stopped process holds up the loop (`worker_pipe.py`). What a worker said before it died is
always reported before its death.

A device whose workers keep dying is given up, and the others go on. Does not know what a job is worth: who
died over what is reported, and the service draws the conclusions.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from pulid.engine import RgbImage
from pulid.errors import EngineFailed, PulidError
from server.jobs.files import MediaStore
from server.jobs.messages import (
    DeviceFault,
    EngineFailedToLoad,
    EngineReady,
    OutOfService,
    Stop,
    ToWorker,
    WorkerDied,
    WorkerEvent,
)
from server.jobs.worker import EXIT_OUT_OF_MEMORY, WorkerSetup, run_worker
from server.jobs.worker_pipe import WorkerPipe, pair
from server.jobs.worker_watch import WorkerWatch
from server.loading import CreateEngine
from server.logs import get_logger, trace_of
from server.settings import LogFormat, LogLevel

log = get_logger("pool")

DEATHS_TO_GIVE_UP = 4  # of the workers of one device,
DEATHS_WITHIN_S = 600.0  # within this time
RESTART_DELAYS_S = (0.1, 0.5, 2.0)  # after the first, second, third of these
LOOK_EVERY_S = 1.0  # for stalled workers, or a quarter of the floor
EXIT_TIMEOUT_S = 5.0  # from the end of a worker's pipe, or from SIGKILL, to the end of the process

_SPAWN = multiprocessing.get_context("spawn")


class WorkerState(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    DEAD = "DEAD"  # dead or dying; comes back as LOADING unless its device is out of service


class WorkerProcess:
    """One life of a worker, from its start to its exit code.

    `hear` is called for each event in order, then `ended` once, with None where there is no exit code.
    """

    def __init__(
        self, setup: WorkerSetup, hear: Callable[[WorkerEvent], None], ended: Callable[[int | None], None]
    ) -> None:
        self._setup = setup
        self._hear = hear
        self._ended = ended
        self._pipe: WorkerPipe | None = None
        self._unsent: list[ToWorker] = []  # until there is a pipe
        self._process: SpawnProcess | None = None
        self._is_killed = False
        self._starting = threading.Lock()

    def start(self) -> None:
        self.life = asyncio.get_running_loop().create_task(self._live())

    def send(self, message: ToWorker) -> None:
        """Never blocks."""
        if self._pipe is None:
            self._unsent.append(message)
        else:
            self._pipe.send(message)

    def kill(self) -> None:
        """SIGKILL, now or as soon as the process is started."""
        with self._starting:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    async def _live(self) -> None:
        exit_code = None
        try:
            await self._talk(await asyncio.to_thread(self._start_process))
            exit_code = await asyncio.to_thread(self._collect)
        except OSError as exc:
            log.error("worker process could not be started", device=self._setup.device, error=exc.strerror)
        except Exception as exc:  # a seat whose worker nobody hears of would wait for ever
            log.error("worker process fault", device=self._setup.device, **trace_of(exc))
        self._ended(exit_code)

    async def _talk(self, ours: socket.socket) -> None:
        """Until the worker's end of the pipe is closed."""
        self._pipe = await WorkerPipe.over(ours, self._hear)
        try:
            for message in self._unsent:
                self._pipe.send(message)
            self._unsent.clear()
            await self._pipe.ended
        finally:
            self._pipe.close()

    def _start_process(self) -> socket.socket:
        """Our end of the pipe. In a thread: it takes a while."""
        # A child inherits the mask of this thread: until it ignores Ctrl-C itself, it cannot hear it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            ours, theirs = pair()
            with theirs:  # the child keeps a copy, the only one, so that its end is the end of the pipe
                self._start_with(theirs, ours)
            return ours
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _start_with(self, theirs: Connection, ours: socket.socket) -> None:
        name = f"worker {self._setup.device}"
        process = _SPAWN.Process(target=run_worker, args=(theirs, self._setup), name=name, daemon=True)
        with self._starting:
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
            self._process = process
            if self._is_killed:
                process.kill()

    def _collect(self) -> int | None:
        """The exit code of a process whose end of the pipe is closed."""
        process = self._process
        if process is None:
            return None
        process.join(EXIT_TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join(EXIT_TIMEOUT_S)
        return process.exitcode


@dataclass(slots=True, eq=False)
class _Seat:
    """The place of one device in the pool, through the lives of its workers."""

    device: str
    watch: WorkerWatch
    state: WorkerState = WorkerState.DEAD
    worker: WorkerProcess | None = None
    deaths: deque[float] = field(default_factory=deque)  # when, of the last few
    last_fault: str = ""  # as a worker told it
    is_out_of_service: bool = False  # none is started again


class WorkerPool:
    looks_ahead = True

    def __init__(
        self,
        *,
        devices: Sequence[str],
        create_engine: CreateEngine,
        decode_photo: Callable[[bytes], RgbImage],
        media: MediaStore,
        on_event: Callable[[str, WorkerEvent], None],
        clock: Callable[[], float] = time.monotonic,
        stall_floor_s: float = 60.0,
        log_level: LogLevel = "info",
        log_format: LogFormat | None = None,
    ) -> None:
        """`create_engine` and `decode_photo` are called in the worker processes, and travel by pickle.

        `devices` are different names, each of which `create_engine` is given once per worker. A worker
        with work that says nothing for `stall_floor_s`, and 20 times the median step, is killed.
        """
        self._setups = {
            device: WorkerSetup(
                device=device,
                create_engine=create_engine,
                decode_photo=decode_photo,
                media=media,
                log_level=log_level,
                log_format=log_format,
            )
            for device in devices
        }
        self._on_event = on_event
        self._clock = clock
        self._stall_floor_s = stall_floor_s
        self._look_every_s = min(LOOK_EVERY_S, stall_floor_s / 4)
        self._seats = {device: _Seat(device, self._new_watch()) for device in devices}
        self._is_draining = False
        self._is_stopping = False

    async def start(self) -> None:
        """Start all workers; returns before they are loaded."""
        self._loop = asyncio.get_running_loop()
        # multiprocessing would start this process with the first worker, and unblock Ctrl-C there.
        await asyncio.to_thread(resource_tracker.ensure_running)
        for seat in self._seats.values():
            self._start_worker(seat)
        self._loop.call_later(self._look_every_s, self._look)

    def send(self, device: str, message: ToWorker) -> None:
        """Put a message on its way. A loading worker gets it once it is loaded, a dead one never."""
        seat = self._seats[device]
        if seat.worker is not None and seat.state is not WorkerState.DEAD:
            seat.watch.sent(message)
            seat.worker.send(message)

    def kill(self, device: str) -> None:
        """SIGKILL now; WorkerDied follows, and a new worker."""
        seat = self._seats[device]
        seat.state = WorkerState.DEAD
        if seat.worker is not None:
            seat.worker.kill()

    def start_no_more(self) -> None:
        """From now on a worker that dies is only reported."""
        self._is_draining = True

    async def stop(self, timeout_s: float) -> None:
        """Let every worker end after its current step, and kill those that have not after `timeout_s`.

        No process is left afterwards, also when this is cancelled while it waits.
        """
        self._is_stopping = True
        workers = [seat.worker for seat in self._seats.values() if seat.worker is not None]
        for worker in workers:
            worker.send(Stop())
        try:
            await _join(workers, timeout_s)
        finally:
            for worker in workers:
                worker.kill()
            await _join(workers, EXIT_TIMEOUT_S)

    # one worker's life

    def _start_worker(self, seat: _Seat) -> None:
        if self._is_stopping or self._is_draining:
            return
        seat.state = WorkerState.LOADING
        seat.watch = self._new_watch()
        seat.worker = WorkerProcess(
            self._setups[seat.device],
            hear=partial(self._on_heard, seat),
            ended=partial(self._on_ended, seat),
        )
        seat.worker.start()

    def _on_heard(self, seat: _Seat, event: WorkerEvent) -> None:
        seat.watch.said(event, self._clock())
        match event:
            case EngineReady() if seat.state is WorkerState.LOADING:
                seat.state = WorkerState.READY
            case EngineFailedToLoad(error):  # nor could it be the next time
                self._take_out_of_service(seat, error)
                return
            case DeviceFault(reason):
                seat.last_fault = reason
        self._on_event(seat.device, event)

    def _on_ended(self, seat: _Seat, exit_code: int | None) -> None:
        seat.state = WorkerState.DEAD
        if self._is_stopping or seat.is_out_of_service:
            return
        self._on_event(seat.device, WorkerDied(exit_code, seat.watch.running, seat.watch.preparing))
        if self._is_draining:
            return
        if exit_code == EXIT_OUT_OF_MEMORY:  # callers may ask for too much as often as they like
            self._loop.call_later(RESTART_DELAYS_S[0], self._start_worker, seat)
            return
        if self._count_death(seat):
            self._take_out_of_service(seat, EngineFailed(_why_given_up(seat)))
        else:
            self._loop.call_later(RESTART_DELAYS_S[len(seat.deaths) - 1], self._start_worker, seat)

    def _count_death(self, seat: _Seat) -> bool:
        """Was this one too many?"""
        now = self._clock()
        seat.deaths.append(now)
        while seat.deaths[0] < now - DEATHS_WITHIN_S:
            seat.deaths.popleft()
        return len(seat.deaths) >= DEATHS_TO_GIVE_UP

    def _take_out_of_service(self, seat: _Seat, error: PulidError) -> None:
        seat.is_out_of_service = True
        self._on_event(seat.device, OutOfService(error))

    # watching

    def _look(self) -> None:
        if self._is_stopping:
            return
        self._loop.call_later(self._look_every_s, self._look)
        for seat in self._seats.values():
            # While an engine is loaded it says nothing, for minutes.
            if seat.state is WorkerState.READY and seat.watch.is_stalled(self._clock()):
                log.error("worker stalled", device=seat.device, patience_s=round(seat.watch.patience_s, 1))
                self.kill(seat.device)

    def _new_watch(self) -> WorkerWatch:
        return WorkerWatch(stall_floor_s=self._stall_floor_s, look_every_s=self._look_every_s)


def _why_given_up(seat: _Seat) -> str:
    return (
        f"The worker of {seat.device} has died {len(seat.deaths)} times within {DEATHS_WITHIN_S / 60:g} "
        "minutes, so none is started there again. "
        f"{seat.last_fault or 'The log says when and with which exit code.'}"
    )


async def _join(workers: Iterable[WorkerProcess], timeout_s: float) -> None:
    if lives := [worker.life for worker in workers]:
        await asyncio.wait(lives, timeout=timeout_s)
