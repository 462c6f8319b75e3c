"""The loop: admit, step, report. One thread that owns one engine, from its creation to its end.

Others speak to it through `admit`, `cancel` and `stop`, which only leave a note, and hear from it
through the `report` callback, which is called in the worker's thread. Cancels act between two
steps. An error of a job, expected or not, ends that job only. Knows no HTTP, no waiting callers.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from pulid.engine import Engine, EngineInfo, GenerationRequest, StepEvent
from pulid.errors import EngineFailed, PulidError
from server.logs import get_logger, trace_of

log = get_logger("worker")


@dataclass(frozen=True, slots=True)
class EngineReady:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine could not be created, or its thread ended unasked. Nothing follows."""

    error: PulidError


@dataclass(frozen=True, slots=True)
class JobStarted:
    job_id: str


Report = EngineReady | EngineLost | JobStarted | StepEvent


@dataclass(frozen=True, slots=True)
class _Admit:
    job_id: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Worker:
    def __init__(self, create_engine: Callable[[], Engine], report: Callable[[Report], None]) -> None:
        self._create_engine = create_engine
        self._report = report
        self._notes: queue.SimpleQueue[_Admit | _Cancel | _Stop] = queue.SimpleQueue()
        self._waiting: deque[_Admit] = deque()
        self._in_flight: set[str] = set()
        self._stopping = False
        # A daemon, so that a second Ctrl-C can end the process in the middle of a long step.
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def admit(self, job_id: str, request: GenerationRequest) -> None:
        self._notes.put(_Admit(job_id, request))

    def cancel(self, job_id: str) -> None:
        self._notes.put(_Cancel(job_id))

    def stop(self, timeout_s: float) -> None:
        """End after the current step and free the device. Blocks up to `timeout_s`."""
        self._notes.put(_Stop())
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        engine = self._load()
        if engine is None:
            return
        self._report(EngineReady(engine.info))
        try:
            with closing(engine):
                while not self._stopping:
                    self._read_notes(engine)
                    self._admit_next(engine)
                    self._step(engine)
        except BaseException as exc:  # nothing is above this frame; the thread ends with it
            log.error("engine thread ended", **trace_of(exc))
            self._report(EngineLost(EngineFailed("The engine's thread has ended.")))

    def _load(self) -> Engine | None:
        try:
            return self._create_engine()
        except PulidError as exc:
            self._report(EngineLost(exc))
        except Exception as exc:
            log.error("engine creation failed", **trace_of(exc))
            self._report(EngineLost(EngineFailed(f"The engine could not be created: {exc!r}.")))
        return None

    def _read_notes(self, engine: Engine) -> None:
        """Take every note there is; with nothing to do, sleep until one comes."""
        idle = not (self._waiting or self._in_flight)
        while idle or not self._notes.empty():
            idle = False
            match self._notes.get():
                case _Admit() as note:
                    self._waiting.append(note)
                case _Cancel(job_id):
                    self._forget(engine, job_id)
                case _Stop():
                    self._stopping = True

    def _forget(self, engine: Engine, job_id: str) -> None:
        self._waiting = deque(note for note in self._waiting if note.job_id != job_id)
        if job_id in self._in_flight:
            self._in_flight.discard(job_id)
            engine.cancel(job_id)

    def _admit_next(self, engine: Engine) -> None:
        """At most one job between two steps: reading its face takes about as long as a step."""
        if not self._waiting or self._stopping:
            return
        note = self._waiting[0]
        try:
            # An engine with nothing in flight is always asked: what it raises then is the answer.
            if self._in_flight and not engine.can_admit(note.request):
                return
            self._report(JobStarted(note.job_id))
            engine.admit(note.job_id, note.request)
            self._in_flight.add(note.job_id)
        except Exception as exc:
            self._fail(note.job_id, exc)
        self._waiting.popleft()

    def _step(self, engine: Engine) -> None:
        if not self._in_flight or self._stopping:
            return
        try:
            events = engine.step()
        except Exception as exc:
            # Nobody knows whose fault it was: all that were in this step end, the next ones run.
            for job_id in sorted(self._in_flight):
                self._fail(job_id, exc)
                self._forget(engine, job_id)
            return
        for event in events:
            if event.is_last:
                self._in_flight.discard(event.job_id)
            self._report(event)

    def _fail(self, job_id: str, exc: Exception) -> None:
        if not isinstance(exc, PulidError):
            log.error("engine fault", job_id=job_id, **trace_of(exc))
            exc = EngineFailed("The picture could not be made: an internal fault. Trying again may help.")
        # A traceback holds the frames it came through, and with them tensors on the device.
        exc.__traceback__ = exc.__cause__ = exc.__context__ = None
        self._report(StepEvent(job_id=job_id, step=0, num_steps=0, error=exc))
