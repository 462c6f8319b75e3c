"""One job: what the record of it holds, where it stands, how it may end. States and moves are a table.

The words are the wire's: a stock SDK polls for ten minutes on a word it does not know, so
cancelled and expired jobs are FAILED with a reason. A record holds nothing personal: the prompt and
the photo are in the body on disk, and go when the job ends. Knows no HTTP, no engine, no database.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pulid.errors import BadRequest, PulidError

if TYPE_CHECKING:
    from server.errors import FieldProblem

Api = Literal["v1", "v2"]

# How much each person looks like the photo (ArcFace cosine), for each picture; None: it shows no face.
# Empty where nobody asked.
Similarities = tuple[tuple[float | None, ...], ...]


class JobState(StrEnum):
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def has_ended(self) -> bool:
        return not MOVES[self]

    def may_become(self, later: JobState) -> bool:
        """Whether moves lead from here to `later`, perhaps over states that nobody wrote down."""
        return later is self or later in MOVES[self] or any(s.may_become(later) for s in _forward(self))


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PROCESSING, JobState.FAILED}),
    # Back to QUEUED: the worker, or the whole server, died under the job.
    JobState.PROCESSING: frozenset({JobState.COMPLETED, JobState.FAILED, JobState.QUEUED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
}


def _forward(state: JobState) -> frozenset[JobState]:
    return MOVES[state] - {JobState.QUEUED}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """One picture of a job, as its record knows it."""

    name: str  # "0.webp"
    content_type: str
    width: int  # pixels, of the picture itself
    height: int
    size: int  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One row of the store. Times are Unix seconds."""

    id: str  # 32 hex; also the request id
    key: str  # name of the API key that submitted it; "" where there are no keys
    api: Api
    state: JobState = JobState.QUEUED
    submitted_at: float
    deadline_at: float
    started_at: float | None = None  # its engine took it
    finished_at: float | None = None
    width: int = 0  # as asked; 0 for a body that was not valid
    height: int = 0
    max_sequence_length: int = 0
    num_steps: int = 0
    num_outputs: int = 0
    seed: int | None = None  # of the first picture
    tries: int = 0  # how often its first step has begun
    deaths: int = 0  # of workers while they had it
    media_id: str  # 32 hex of its own: who knows it may fetch the pictures
    files: tuple[JobFile, ...] = ()
    error: str | None = None  # why it FAILED, for the caller
    error_code: str | None = None
    error_fields: tuple[FieldProblem, ...] = ()  # of the body, where single ones were wrong
    similarities: Similarities = ()

    @property
    def inference_s(self) -> float:
        """Seconds from the engine's start to the end; 0 for a job that never started."""
        return 0.0 if self.started_at is None else max(0.0, (self.finished_at or 0.0) - self.started_at)

    @property
    def queue_s(self) -> float:
        """Seconds from submit to the engine's start, or to the end of a job that never started."""
        return max(0.0, (self.started_at or self.finished_at or self.submitted_at) - self.submitted_at)


class NotReady(PulidError):
    """No engine can take work: it is loading, has failed, or the server is going down."""

    code = "not_ready"


class GoingDown(NotReady):
    def __init__(self) -> None:
        super().__init__("The server is going down. Send the request again later.")


class JobTimedOut(PulidError):
    code = "timed_out"


class JobCancelled(PulidError):
    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("The job was cancelled.")


class JobInterrupted(PulidError):
    code = "interrupted"


class JobNotFound(BadRequest):
    code = "not_found"

    def __init__(self) -> None:
        super().__init__("There is no such request. It may have expired, or belong to another API key.")


class IdempotencyConflict(BadRequest):
    code = "idempotency_conflict"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another body. Send a new key with a new body.")


class StoreFailed(PulidError):
    """The data folder or its database did not take a write; nothing has changed. It may the next time."""

    code = "storage_failed"

    def __init__(self, why: str = "its data folder cannot be written") -> None:
        super().__init__(f"The server cannot store the request now: {why}. Try again later.")
        self.why = why


class StoreFull(StoreFailed):
    """The disk (or the table of open files) is full."""

    code = "storage_full"

    def __init__(self) -> None:
        super().__init__("its disk is full")


class StoreSilent(StoreFailed):
    """The database that several servers share does not answer, to a question or to a write."""

    def __init__(self) -> None:
        self.why = "its database does not answer"
        PulidError.__init__(self, f"The server cannot reach its records now: {self.why}. Try again later.")


class KeyHasEnough(PulidError):
    """An API key has as many unfinished jobs as it may have at all servers together."""

    code = "rate_limited"

    def __init__(self) -> None:
        super().__init__("This key may have no more unfinished jobs. Try again when one has ended.")


class LeaseLost(PulidError):
    """The job is another server's by now: whatever this one knows of it does not count."""

    code = "lease_lost"

    def __init__(self) -> None:
        super().__init__("Another server has taken up the job.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierSubmit:
    """What an Idempotency-Key stands for."""

    record: JobRecord
    body_digest: bytes

    def require_same(self, body_digest: bytes) -> None:
        """Raises IdempotencyConflict for another body."""
        if body_digest != self.body_digest:
            raise IdempotencyConflict
