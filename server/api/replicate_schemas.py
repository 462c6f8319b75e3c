"""Wire types of Replicate's predictions, and how a job is told in them.

Its clients read `status`, `output`, `error`, `logs` and `metrics`, and stop at succeeded, failed and
canceled. `input` stays empty: what a caller sent is kept nowhere once it is a job. Knows no route.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

import server
from server.api.similarity import IdentitySimilarity, for_json
from server.api.v1_schemas import ErrorAnswer
from server.jobs.job import JobCancelled, JobRecord, JobState
from server.jobs.live import JobView

MODEL = "flux-pulid"
_BAR = 20  # characters

Status = Literal["starting", "processing", "succeeded", "failed", "canceled"]

_STATUS: dict[JobState, Status] = {
    JobState.QUEUED: "starting",
    JobState.PROCESSING: "processing",
    JobState.COMPLETED: "succeeded",
    JobState.FAILED: "failed",
}


class Urls(BaseModel):
    get: str
    cancel: str


class Metrics(BaseModel):
    predict_time: float = Field(description="Seconds in the engine.")
    total_time: float = Field(description="Seconds since the submit.")
    identity_similarity: IdentitySimilarity = None


class Prediction(BaseModel):
    id: str
    model: str = MODEL
    version: str = Field(server.__version__, description="Of this server.")
    status: Status
    input: dict[str, Any] = Field({}, description="Always empty.")
    output: list[str] | None = Field(None, description="Links or data URIs, one for each picture.")
    error: str | None = None
    logs: str = Field("", description="A bar that shows how far it is.")
    metrics: Metrics | None = None
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    urls: Urls

    @classmethod
    def of(cls, view: JobView, *, url: str, output: list[str] | None) -> Prediction:
        """`url`: where this prediction can be asked for."""
        record = view.record
        return cls(
            id=record.id,
            status=status_of(record),
            output=output,
            error=record.error,
            logs=bar(view.step, record.num_steps),
            metrics=_metrics(record),
            created_at=_iso(record.submitted_at),
            started_at=_iso(record.started_at) if record.started_at else None,
            completed_at=_iso(record.finished_at) if record.finished_at else None,
            urls=Urls(get=url, cancel=f"{url}/cancel"),
        )


class PredictionError(ErrorAnswer):
    """An error as on every route, with the names that Replicate's clients look for."""

    detail: str = Field(description="The same as `error`.")
    status: int


def error_form(status: int, code: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"detail": body["error"], "status": status, **body}


def status_of(record: JobRecord) -> Status:
    return "canceled" if record.error_code == JobCancelled.code else _STATUS[record.state]


def bar(step: int, num_steps: int) -> str:
    """As tqdm draws it, since clients look for progress in such a line; "" before the first step."""
    if not step:
        return ""
    filled = "#" * (_BAR * step // num_steps)
    return f"{100 * step // num_steps:3d}%|{filled:<{_BAR}}| {step}/{num_steps}\n"


def _metrics(record: JobRecord) -> Metrics | None:
    if record.finished_at is None:
        return None
    total = max(0.0, record.finished_at - record.submitted_at)
    return Metrics(
        predict_time=round(record.inference_s, 3),
        total_time=round(total, 3),
        identity_similarity=for_json(record.similarities),
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
