"""One job: what was asked, where it stands, how it ended. The states and their moves are a table.

The words are the wire's: a stock SDK polls for ten minutes on a word it does not know, so
cancelled and expired jobs are FAILED with a reason. Knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from pulid.engine import GenerationRequest
from pulid.errors import PulidError
from server.jobs.files import ImageFile, OutputOptions


class JobState(StrEnum):
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PROCESSING, JobState.FAILED}),
    # Back to QUEUED: the worker was restarted under the job.
    JobState.PROCESSING: frozenset({JobState.COMPLETED, JobState.FAILED, JobState.QUEUED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
}


class NotReady(PulidError):
    """No engine can take work: it is loading, has failed, or the server is going down."""

    code = "not_ready"


class JobTimedOut(PulidError):
    code = "timed_out"


class JobCancelled(PulidError):
    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("The job was cancelled.")


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    id: str
    request: GenerationRequest  # without the photo, which lives only until the engine has read it
    output: OutputOptions
    state: JobState = JobState.QUEUED
    step: int = 0  # denoising steps done
    error: PulidError | None = None  # why it is FAILED
    files: tuple[ImageFile, ...] = ()
    submitted_at: float = field(default_factory=time.monotonic)  # seconds, as the two below
    started_at: float | None = None
    finished_at: float | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)  # the engine has it, or it has ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, state: JobState) -> None:
        """Change the state. Raises ValueError for a move the table does not have."""
        if state not in MOVES[self.state]:
            raise ValueError(f"a job cannot move from {self.state} to {state}")
        self.state = state
        if state is JobState.PROCESSING:
            self.started_at = time.monotonic()
            self.started.set()
        elif not MOVES[state]:
            self.finished_at = time.monotonic()
            self.started.set()
            self.ended.set()

    @property
    def generation_s(self) -> float:
        """Seconds from the engine's start to the finished files; 0 for a job that never started."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return self.finished_at - self.started_at
