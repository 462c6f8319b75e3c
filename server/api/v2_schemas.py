"""Wire types of the job contract, and how a job is told in them. docs/spec/CONTRACT.md, section 5.

Clients read `status` under any HTTP code and stop at COMPLETED and FAILED. What goes beyond the
contract (place in the queue, progress) is in keys of its own that no known client trips over.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.api.links import Links
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


class Completed(BaseModel):
    status: Literal["COMPLETED"] = "COMPLETED"
    request_id: str
    metrics: Accounts


class Failed(BaseModel):
    """Sent with HTTP 422."""

    status: Literal["FAILED"] = "FAILED"
    error: str
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


class Removed(BaseModel):
    request_id: str
    status: JobState = Field(description="FAILED for a job that was cancelled by this call.")
    deleted: bool = Field(description="Whether record and pictures are gone; a cancelled job has a record.")


Status = Queued | Processing | Completed | Failed


def status_of_job(view: JobView, links: Links, *, credits_left: int) -> Status:
    """How a job stands, without its output."""
    record = view.record
    if record.state is JobState.COMPLETED:
        return Completed(request_id=record.id, metrics=accounts(record, credits_left))
    if record.state is JobState.FAILED:
        return Failed(error=record.error or "", metrics=Timings.of(record), request_id=record.id)
    urls = {"status_url": links.status(record.id), "response_url": links.result(record.id)}
    if record.state is JobState.QUEUED:
        return Queued(request_id=record.id, queue_position=view.queue_position, **urls)
    progress = Progress(step=view.step, num_steps=record.num_steps)
    return Processing(request_id=record.id, progress=progress, **urls)


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
