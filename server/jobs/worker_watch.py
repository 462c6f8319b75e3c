"""What one worker is busy with, judged from what was sent to it and what it said; and whether it stalls.

Pure Python: time comes in as an argument. Knows no process and no pipe.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from statistics import median

from server.jobs.messages import (
    Admit,
    Answer,
    Cancel,
    Finished,
    JobFailed,
    Loading,
    Prepare,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
    ToWorker,
    WorkerEvent,
)

STEPS_REMEMBERED = 50
STEPS_OF_SILENCE = 20  # as many median steps may pass without a word, if they take longer than the floor


class _Phase(Enum):
    SENT = auto()
    PREPARING = auto()
    PREPARED = auto()


@dataclass(slots=True)
class _Job:
    phase: _Phase = _Phase.SENT
    is_admitted: bool = False
    is_denoised: bool = False  # its steps are done; its pictures are decoded and saved beside other steps

    @property
    def is_running(self) -> bool:
        return self.is_admitted and self.phase is _Phase.PREPARED

    @property
    def is_idle(self) -> bool:
        """It waits for the server, not for the worker."""
        return self.phase is _Phase.PREPARED and not self.is_admitted


class WorkerWatch:
    """One life of a worker. `look_every_s`: how often `is_stalled` is going to be asked."""

    def __init__(self, *, stall_floor_s: float, look_every_s: float) -> None:
        self._stall_floor_s = stall_floor_s
        self._look_every_s = look_every_s
        self._jobs: dict[str, _Job] = {}
        self._step_s: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._stepping_since: float | None = None
        self._silent_s = 0.0
        self._unsaved_s = 0.0  # how long a denoised job waits, and none has ended
        self._looked_at: float | None = None

    @property
    def running(self) -> tuple[str, ...]:
        """Admitted jobs that have not ended, the one whose pictures are being saved among them."""
        return tuple(job_id for job_id, job in self._jobs.items() if job.is_running)

    @property
    def preparing(self) -> str | None:
        """The job whose photo or prompt is being read."""
        return next((job_id for job_id, job in self._jobs.items() if job.phase is _Phase.PREPARING), None)

    @property
    def has_work(self) -> bool:
        return not all(job.is_idle for job in self._jobs.values())

    def sent(self, message: ToWorker) -> None:
        if not self.has_work:
            self._silent_s = 0.0
        match message:
            case Prepare(job_id=job_id, is_admitted=is_admitted):
                self._jobs[job_id] = _Job(is_admitted=is_admitted)
            case Admit(job_id):
                if job_id in self._jobs:
                    self._jobs[job_id].is_admitted = True
            case Cancel(job_id):
                self._end(job_id)

    def said(self, event: WorkerEvent, now: float) -> None:
        if isinstance(event, Loading):  # says nothing about any job
            return
        # Questions are answered beside the steps: while a job runs, an answer says nothing about it. While
        # none does, it says that a job which waits behind questions is going to be prepared.
        if not (isinstance(event, Answer) and self.running):
            self._silent_s = 0.0
        match event:
            case Preparing(job_id):
                self._set_phase(job_id, _Phase.PREPARING)
            case Prepared(job_id):
                self._set_phase(job_id, _Phase.PREPARED)
            case Stepping():
                self._stepping_since = now
            case Stepped(job_id, step, num_steps):
                self._note_step(now)
                if step == num_steps:
                    self._note_denoised(job_id)
            case Finished(job_id) | JobFailed(job_id):
                self._end(job_id)

    def is_stalled(self, now: float) -> bool:
        """Has a worker with work been silent for too long, or brought none of its pictures to an end?

        Steps do not hide that the saving beside them has stopped. A server that was itself stopped for
        an hour must not take that for the worker's silence: between two looks at most twice the usual
        time counts.
        """
        since = now if self._looked_at is None else self._looked_at
        self._looked_at = now
        if not self.has_work:
            return False
        passed = min(now - since, 2 * self._look_every_s)
        self._silent_s += passed
        self._unsaved_s += passed
        unsaved_s = self._unsaved_s if self._saves else 0.0
        return max(self._silent_s, unsaved_s) > self.patience_s

    @property
    def patience_s(self) -> float:
        return max(self._stall_floor_s, STEPS_OF_SILENCE * median(self._step_s or [0.0]))

    @property
    def _saves(self) -> bool:
        return any(job.is_denoised for job in self._jobs.values())

    def _note_denoised(self, job_id: str) -> None:
        if not self._saves:
            self._unsaved_s = 0.0
        if job_id in self._jobs:
            self._jobs[job_id].is_denoised = True

    def _end(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None and job.is_denoised:
            self._unsaved_s = 0.0

    def _set_phase(self, job_id: str, phase: _Phase) -> None:
        if job_id in self._jobs:
            self._jobs[job_id].phase = phase

    def _note_step(self, now: float) -> None:
        if self._stepping_since is not None:
            self._step_s.append(now - self._stepping_since)
        self._stepping_since = now
