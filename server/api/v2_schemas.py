"""Wire types of the job contract, and how a job is told in them. docs/spec/CONTRACT.md, section 5.

Clients read `status` under any HTTP code and stop at COMPLETED and FAILED. What goes beyond the
contract (place in the queue, progress) is in keys of its own that no known client trips over.
"""

from __future__ import annotations

import base64
from typing import Literal

from pydantic import BaseModel, Field

from server.api.links import Links
from server.api.similarity import IdentitySimilarity, for_json
from server.api.v1_schemas import ErrorField
from server.jobs.job import JobRecord, JobState
from server.jobs.live import JobView


class Submitted(BaseModel):
    """The answer to a submit. All five keys are read by one client or another."""

    request_id: str
    status: JobState
    poll_url: str
    status_url: str
    response_url: str

    @classmethod
    def of(cls, record: JobRecord, links: Links, *, status: JobState) -> Submitted:
        return cls(
            request_id=record.id,
            status=status,
            poll_url=links.poll(record.id),
            status_url=links.status(record.id),
            response_url=links.result(record.id),
        )


class NoMetrics(BaseModel):
    """While a job is on its way."""


class Timings(BaseModel):
    """Seconds."""

    inference_time: float
    queue_time: float
    total_time: float

    @classmethod
    def of(cls, record: JobRecord) -> Timings:
        return cls(**_seconds(record))


class Accounts(Timings):
    """Seconds, and two constants."""

    cost: float = 0.0
    remaining_credits: float


class Progress(BaseModel):
    step: int = Field(description="Denoising steps done.")
    num_steps: int
    seconds_left: float | None = Field(
        description="For the steps that are left, from how long those so far have taken; null before step 2."
    )


class Queued(BaseModel):
    status: Literal["QUEUED"] = "QUEUED"
    request_id: str
    status_url: str
    response_url: str
    metrics: NoMetrics = NoMetrics()
    queue_position: int | None = Field(description="Jobs before this one; 0: it is next.")


class Processing(BaseModel):
    status: Literal["PROCESSING"] = "PROCESSING"
    request_id: str
    status_url: str
    response_url: str
    metrics: NoMetrics = NoMetrics()
    progress: Progress
    preview: str | None = Field(
        None,
        description="Only in events that were asked for with preview=true: a small JPEG as a data URI.",
        exclude_if=lambda preview: preview is None,
    )


class Completed(BaseModel):
    status: Literal["COMPLETED"] = "COMPLETED"
    request_id: str
    metrics: Accounts
    identity_similarity: IdentitySimilarity = None


class Failed(BaseModel):
    """Sent with HTTP 422."""

    status: Literal["FAILED"] = "FAILED"
    error: str
    code: str = Field(description="A stable name of the reason.")
    fields: list[ErrorField] | None = Field(
        None, description="Only where single fields are wrong.", exclude_if=lambda fields: fields is None
    )
    metrics: Timings
    request_id: str


class Picture(BaseModel):
    url: str
    content_type: str
    width: int = Field(description="Pixels, of the picture itself.")
    height: int
    file_name: str
    file_size: int = Field(description="Bytes.")


class InferenceTime(BaseModel):
    inference: float = Field(description="Seconds.")


class Result(BaseModel):
    status: Literal["COMPLETED"] = "COMPLETED"
    request_id: str
    error: None = None
    seed: int = Field(description="Of the first picture; picture i has seed + i.")
    metrics: Accounts
    output: str | list[str] = Field(description="A URL for one picture, a list for several.")
    images: list[Picture]
    timings: InferenceTime
    identity_similarity: IdentitySimilarity = None


class Removed(BaseModel):
    request_id: str
    status: JobState = Field(description="FAILED for a job that was cancelled by this call.")
    deleted: bool = Field(description="Whether record and pictures are gone; a cancelled job has a record.")


Status = Queued | Processing | Completed | Failed


def status_of_job(view: JobView, links: Links, *, credits_left: int) -> Status:
    """How a job stands, without its output."""
    record = view.record
    if record.state is JobState.COMPLETED:
        return Completed(
            request_id=record.id,
            metrics=accounts(record, credits_left),
            identity_similarity=for_json(record.similarities),
        )
    if record.state is JobState.FAILED:
        return failure(record)
    urls = {"status_url": links.status(record.id), "response_url": links.result(record.id)}
    if record.state is JobState.QUEUED:
        return Queued(request_id=record.id, queue_position=view.queue_position, **urls)
    left = None if view.seconds_left is None else round(view.seconds_left, 1)
    progress = Progress(step=view.step, num_steps=record.num_steps, seconds_left=left)
    return Processing(request_id=record.id, progress=progress, preview=data_uri(view.preview), **urls)


def failure(record: JobRecord) -> Failed:
    fields = [ErrorField(field=wrong.field, message=wrong.message) for wrong in record.error_fields]
    return Failed(
        error=record.error or "",
        code=record.error_code or "internal_error",
        fields=fields or None,
        metrics=Timings.of(record),
        request_id=record.id,
    )


def data_uri(preview: bytes | None) -> str | None:
    return None if preview is None else f"data:image/jpeg;base64,{base64.b64encode(preview).decode('ascii')}"


def result_of_job(view: JobView, links: Links, *, credits_left: int) -> Status | Result:
    """A finished job with its output; any other as `status_of_job`."""
    record = view.record
    if record.state is not JobState.COMPLETED:
        return status_of_job(view, links, credits_left=credits_left)
    urls = links.pictures(record)
    return Result(
        request_id=record.id,
        seed=record.seed or 0,
        metrics=accounts(record, credits_left),
        output=urls[0] if len(urls) == 1 else urls,
        images=[
            Picture(
                url=url,
                content_type=file.content_type,
                width=file.width,
                height=file.height,
                file_name=file.name,
                file_size=file.size,
            )
            for url, file in zip(urls, record.files, strict=True)
        ],
        timings=InferenceTime(inference=_seconds(record)["inference_time"]),
        identity_similarity=for_json(record.similarities),
    )


def accounts(record: JobRecord, credits_left: int) -> Accounts:
    return Accounts(**_seconds(record), remaining_credits=credits_left)


def _seconds(record: JobRecord) -> dict[str, float]:
    total = (record.finished_at or record.submitted_at) - record.submitted_at
    return {
        "inference_time": round(record.inference_s, 3),
        "queue_time": round(record.queue_s, 3),
        "total_time": round(max(0.0, total), 3),
    }
