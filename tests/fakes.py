"""ScriptedEngine: obeys `pulid.engine.Engine` without a model, and fails or stalls on command.

For tests of jobs and HTTP only; everything about pictures is tested with the tiny profile.
A gated engine does each step only when the test lets it (`run_steps`), so no test has to sleep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from pulid.engine import EngineInfo, GenerationRequest, GenerationResult, StepEvent

PATIENCE_S = 20.0  # for what must happen soon; only a failing test waits this long


class ScriptedEngine:
    def __init__(self, *, gated: bool = False, places: int = 1, notice: str = "") -> None:
        self.info = EngineInfo(profile="scripted", device="none", notice=notice)
        self.fail_admit: dict[str, Exception] = {}  # prompt → what `admit` raises
        self.fail_step: dict[str, Exception] = {}  # prompt → what `step` raises while it is in flight
        self.report_error: dict[str, Exception] = {}  # prompt → error of its last event
        self.admitted: dict[str, GenerationRequest] = {}  # everything ever admitted, in order
        self.steps: dict[str, int] = {}  # steps done, by job
        self.cancelled: list[str] = []
        self.closed = False
        self.threads: set[int] = set()  # that have called this engine
        self._places = places
        self._in_flight: list[str] = []
        self._gate = threading.Semaphore(0) if gated else None
        self._changed = threading.Condition()

    # what the worker calls

    def can_admit(self, request: GenerationRequest) -> bool:
        return len(self._in_flight) < self._places

    def admit(self, job_id: str, request: GenerationRequest) -> None:
        self._note(lambda: None)
        if request.prompt in self.fail_admit:
            raise self.fail_admit[request.prompt]
        self._in_flight.append(job_id)
        self.steps[job_id] = 0
        self._note(lambda: self.admitted.update({job_id: request}))

    def step(self) -> list[StepEvent]:
        if self._gate is not None:
            self._gate.acquire()
        for job_id in self._in_flight:
            if (fault := self.fail_step.get(self.admitted[job_id].prompt)) is not None:
                raise fault
        return [self._advance(job_id) for job_id in list(self._in_flight)]

    def cancel(self, job_id: str) -> None:
        if job_id in self._in_flight:
            self._in_flight.remove(job_id)
        self._note(lambda: self.cancelled.append(job_id))

    def close(self) -> None:
        self.closed = True

    def _advance(self, job_id: str) -> StepEvent:
        request = self.admitted[job_id]
        self._note(lambda: self.steps.update({job_id: self.steps[job_id] + 1}))
        done, error = self.steps[job_id], self.report_error.get(request.prompt)
        result = None
        if error is not None or done == request.num_steps:
            self._in_flight.remove(job_id)
            result = None if error else paint(request)
        return StepEvent(job_id=job_id, step=done, num_steps=request.num_steps, result=result, error=error)

    def _note(self, change: Callable[[], object]) -> None:
        with self._changed:
            self.threads.add(threading.get_ident())
            change()
            self._changed.notify_all()

    # what a test calls

    def run_steps(self, count: int) -> None:
        """Let a gated engine do that many steps."""
        assert self._gate is not None
        self._gate.release(count)

    def open_gate(self) -> None:
        self.run_steps(10_000)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Wait until something the engine has seen makes `condition` true."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    @property
    def last_request(self) -> GenerationRequest:
        return list(self.admitted.values())[-1]


def paint(request: GenerationRequest) -> GenerationResult:
    """Flat pictures whose colour tells the seed, in the size the real engine would give."""
    seeds = tuple((request.seed + i) % 2**63 for i in range(request.num_outputs))
    height, width = (-(-side // 16) * 16 for side in (request.height, request.width))
    images = tuple(flat_picture(height, width, colour_of(seed)) for seed in seeds)
    return GenerationResult(images=images, seeds=seeds, timings={"denoise": 0.0})


def colour_of(seed: int) -> tuple[int, int, int]:
    return (seed * 37 % 256, seed * 101 % 256, seed * 197 % 256)


def flat_picture(height: int, width: int, colour: Iterable[int]) -> np.ndarray:
    return np.full((height, width, 3), tuple(colour), dtype=np.uint8)
