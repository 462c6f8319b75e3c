"""Routes of v2, the job contract: submit, status, result, remove. docs/spec/CONTRACT.md, section 5.

A submit answers at once, when the job is on disk; the caller polls the URLs in the answer. Jobs
are visible to the key that submitted them and to nobody else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel

from server.api.body import received_json
from server.api.deps import NEEDS_KEY, KeyDep, LinksDep, ServiceDep, SettingsDep
from server.api.responses import REQUEST_BODY, described
from server.api.submit import accept
from server.api.v2_schemas import (
    Completed,
    Failed,
    Processing,
    Queued,
    Removed,
    Result,
    Submitted,
    result_of_job,
    status_of_job,
)
from server.errors import FieldProblem, InvalidParameters
from server.jobs.job import JobNotFound, JobState
from server.security.rate_limit import require_budget

router = APIRouter(tags=["v2"], dependencies=[NEEDS_KEY])

JobId = Annotated[str, Path(description="The request_id of a submit.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A name for this call. The same name with the same body again is the same job.",
        json_schema_extra={"pattern": "^[\\x21-\\x7e]{1,255}$"},
    ),
]
_FAILED: dict[int | str, dict[str, Any]] = {
    422: {"model": Failed, "description": "The job FAILED; the text says why."}
}
_RESULT: dict[int | str, dict[str, Any]] = {
    200: {"model": Result | Queued | Processing, "description": "The output, or how the job stands."},
    **_FAILED,
    **described(401, 404, 500, 503),
}


@router.post(
    "/v2/flux-pulid",
    response_class=Response,
    responses={
        200: {"model": Submitted, "description": "The job is on disk and will be done."},
        **described(400, 401, 406, 409, 413, 429, 500, 503),
    },
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def submit(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    key: KeyDep,
    links: LinksDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue portraits; poll the URLs in the answer. What is wrong with the parameters is told there."""
    earlier = None
    if idempotency_key is not None:
        _check_idempotency_key(idempotency_key)
        earlier = await service.earlier(key, idempotency_key)
    if earlier is None:  # what is sent again costs nothing, and is answered even where new work is refused
        await require_budget(request, key)
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        if earlier is not None:
            record = await service.repeat(earlier, body)
        else:
            record = await accept(
                request,
                service,
                body,
                key=key,
                api="v2",
                deadline_s=settings.job_deadline_s,
                idempotency_key=idempotency_key,
            )
    # A job may have FAILED already over its parameters; callers look for that when they poll.
    status = JobState.QUEUED if idempotency_key is None else record.state
    return _answer(Submitted.of(record, links, status=status))


@router.get(
    "/v2/requests/{request_id}/status",
    response_class=Response,
    responses={
        200: {"model": Queued | Processing | Completed, "description": "How the job stands."},
        **_FAILED,
        **described(401, 404, 500, 503),
    },
)
async def job_status(
    request_id: JobId, service: ServiceDep, settings: SettingsDep, key: KeyDep, links: LinksDep
) -> Response:
    """How a job stands, without its output."""
    view = await service.view(request_id, key=key)
    return _answer(status_of_job(view, links, credits_left=settings.credits))


@router.get("/v2/requests/{request_id}", response_class=Response, responses=_RESULT)
@router.get(
    "/v1/requests/{request_id}",
    response_class=Response,
    responses=_RESULT,
    summary="Job Result, at the Address of v1",
)
async def job_result(
    request_id: JobId, service: ServiceDep, settings: SettingsDep, key: KeyDep, links: LinksDep
) -> Response:
    """The output of a finished job; of any other, its status."""
    view = await service.view(request_id, key=key)
    return _answer(result_of_job(view, links, credits_left=settings.credits))


@router.delete(
    "/v2/requests/{request_id}",
    response_class=Response,
    responses={
        200: {"model": Removed, "description": "Cancelled, or deleted with its pictures."},
        **described(401, 404, 500, 503),
    },
)
async def remove_job(request_id: JobId, service: ServiceDep, key: KeyDep) -> Response:
    """Cancel a job that has not ended; delete one that has, with its pictures."""
    view = await service.remove(request_id, key=key)
    try:
        await service.view(request_id, key=key)
    except JobNotFound:
        return _answer(Removed(request_id=request_id, status=view.record.state, deleted=True))
    return _answer(Removed(request_id=request_id, status=view.record.state, deleted=False))


def _check_idempotency_key(value: str) -> None:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        message = "Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise InvalidParameters([FieldProblem("Idempotency-Key", message)])


def _answer(body: BaseModel) -> Response:
    status = 422 if isinstance(body, Failed) else 200
    headers = {"cache-control": "no-store"}  # a status changes, and a result has links that are keys
    return Response(body.model_dump_json(), status, headers, media_type="application/json")
