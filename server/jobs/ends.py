"""How a job ends: the last record of it, and when another attempt is no use.

Judgement over records, and the last word to a job's trace. Does not know disks, workers and callers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from pulid.errors import BadRequest, EngineFailed, PulidError
from server.errors import InvalidParameters
from server.jobs.job import JobFile, JobInterrupted, JobRecord, JobState, Similarities
from server.jobs.live import LiveJob

MAX_TRIES = 3  # beginnings of one v2 job
MAX_DEATHS = 2  # of workers over one job


def ended_record(
    record: JobRecord,
    *,
    files: tuple[JobFile, ...] = (),
    similarities: Similarities = (),
    error: PulidError | None = None,
) -> JobRecord:
    """FAILED with the error's text, code and fields, or COMPLETED with the files."""
    now = time.time()
    if error is None:
        return replace(
            record, state=JobState.COMPLETED, finished_at=now, files=files, similarities=similarities
        )
    return replace(
        record,
        state=JobState.FAILED,
        finished_at=now,
        error=str(error),
        error_code=error.code,
        error_fields=error.problems if isinstance(error, InvalidParameters) else (),
    )


def end_trace(job: LiveJob) -> None:
    if job.trace is not None:
        job.trace.ended(job.record)
        job.trace = None


def about(error: PulidError, places: Sequence[str]) -> PulidError:
    """The error, or where it is about one of several photos, one that names its place in the request."""
    if not isinstance(error, BadRequest) or error.photo is None or len(places) < 2:
        return error
    return type(error)(f"{places[error.photo]}: {error}")


def hopeless(record: JobRecord) -> PulidError | None:
    """Why a job is not tried again; None where it is."""
    if record.deaths >= MAX_DEATHS:
        return EngineFailed("The engine died twice over this request. Change the photo or the prompt.")
    if record.tries >= MAX_TRIES:
        return JobInterrupted(f"The server was interrupted {MAX_TRIES} times over this request.")
    return None
