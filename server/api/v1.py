"""Routes of v1, the synchronous contract: submit, wait, answer.

The answer is the picture itself, with the figures in headers, or JSON where the caller asked for
it. Contract: docs/spec/CONTRACT.md, section 2. Painting, fetching, parsing and encoding happen
elsewhere; a route only says in which order.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response

from server.api.body import client_left, received_json
from server.api.context import JSON_MOUNT
from server.api.deps import NEEDS_BUDGET, NEEDS_KEY, KeyDep, LinksDep, ServiceDep, SettingsDep
from server.api.links import Links
from server.api.responses import REQUEST_BODY, described
from server.api.similarity import HEADER as SIMILARITY_HEADER
from server.api.similarity import for_header, for_json
from server.api.submit import accept
from server.api.v1_schemas import Base64Answer, may_want_base64, wants_base64
from server.errors import (
    ClientLeft,
    FieldProblem,
    InvalidParameters,
    OutputUnreadable,
    error_response,
    status_of,
)
from server.jobs.files import CONTENT_TYPES
from server.jobs.job import JobRecord, JobState
from server.jobs.service import JobService
from server.settings import Settings

router = APIRouter(tags=["v1"], dependencies=[NEEDS_KEY])

Form = Literal["bytes", "json"]

LOOKED_THROUGH_AT_ONCE = 1_000_000  # bytes of a body; less than a millisecond of the event loop

_FORMS: dict[str | None, Form] = {"bytes": "bytes", "json": "json"}
_FORMATS = {content_type: name for name, content_type in CONTENT_TYPES.items()}
_KINDS = sorted(_FORMATS, key=lambda kind: _FORMATS[kind] != "webp")  # the default first

_HEADERS = {
    "x-request-id": "Own id of this call; on every answer.",
    "x-generation-time": "Seconds.",
    "x-remaining-credits": "A constant.",
    "x-cost": "Always 0.",
    "x-seed-value": "Seed of the first picture.",
    "x-output-metadata": 'JSON: {"height", "width", "samples"}, real pixels.',
    SIMILARITY_HEADER: "Only with identity_similarity: `0.7123;none, 0.6882;0.4110`, with a comma between "
    "pictures and a semicolon between the people of one; `none`: the picture shows no face.",
    "x-flux-pulid-notice": "Only where the profile has something to say about its pictures.",
    "link": 'With several pictures and the body as bytes: `<url>; rel="item"` for each of them.',
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The (first) picture, or JSON with all of them.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS},
            "application/json": {"schema": Base64Answer.model_json_schema()},
        },
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
        },
    },
    **described(400, 401, 406, 409, 413, 429, 500, 503, 504),
}


@router.post(
    "/v1/flux-pulid",
    response_class=Response,
    responses=_RESPONSES,
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def paint(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    key: KeyDep,
    links: LinksDep,
    response_format: Annotated[
        str | None,
        Query(
            description="The form of the answer: the picture's bytes, or JSON.",
            json_schema_extra={"enum": ["bytes", "json"]},
        ),
    ] = None,
) -> Response:
    """Paint portraits of the person in a photo, and answer with them."""
    form = form_of(request, response_format, default=settings.v1_response)
    deadline_s = min(settings.v1_timeout_s, settings.job_deadline_s)
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        record = await accept(request, service, body, key=key, api="v1", deadline_s=deadline_s)
        if await asks_for_base64(body):
            form = "json"
        del body  # the photo in it is the job's by now
    request.state.request_id = record.id
    record = await wait_with_client(request, service, record.id)
    if record.state is not JobState.COMPLETED:
        return error_response(request, status_of(record.error_code), record.error or "")
    answer = json_answer if form == "json" else bytes_answer
    response = await answer(service, record, links)
    response.headers.update(figures(record, service, settings))
    return response


async def asks_for_base64(body: bytes) -> bool:
    """Of a valid body. A short look saves most calls a thread."""
    if len(body) <= LOOKED_THROUGH_AT_ONCE and not may_want_base64(body):
        return False
    return await anyio.to_thread.run_sync(wants_base64, body)


def form_of(request: Request, asked: str | None, *, default: Form) -> Form:
    """The form of the answer, as far as it does not depend on the body: first match decides.

    Raises InvalidParameters for a query that asks for neither.
    """
    if asked in _FORMS:
        return _FORMS[asked]
    if asked is not None:
        problem = FieldProblem("response_format", "response_format must be one of bytes, json.")
        raise InvalidParameters([problem])
    if request.scope["root_path"] == JSON_MOUNT:
        return "json"
    # Narrow on purpose: axios always accepts "application/json, text/plain, */*" and wants bytes.
    accept = request.headers.get("accept", "").lower()
    if "application/json" in accept and "*/*" not in accept and "image/" not in accept:
        return "json"
    return default


async def wait_with_client(request: Request, service: JobService, job_id: str) -> JobRecord:
    """The record of the job once it has ended. A client that leaves takes its job with it."""
    result = asyncio.create_task(service.wait(job_id))
    left = asyncio.create_task(client_left(request))
    try:
        await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientLeft("The client left before its picture was done.")
        return result.result()
    finally:
        service.cancel(job_id)  # changes nothing for a job that has ended
        result.cancel()
        left.cancel()


def figures(record: JobRecord, service: JobService, settings: Settings) -> dict[str, str]:
    first = record.files[0]
    size = {"height": first.height, "width": first.width, "samples": len(record.files)}
    headers = {
        "x-generation-time": f"{record.inference_s:.3f}",
        "x-remaining-credits": str(settings.credits),
        "x-cost": "0",
        "x-seed-value": str(record.seed),
        "x-output-metadata": json.dumps(size, separators=(",", ":")),
    }
    if record.similarities:
        headers[SIMILARITY_HEADER] = for_header(record.similarities)
    if service.engine_info is not None and service.engine_info.notice:
        headers["x-flux-pulid-notice"] = service.engine_info.notice
    return headers


async def bytes_answer(service: JobService, record: JobRecord, links: Links) -> Response:
    """The first picture. A body with more than one would be no picture: the others are linked."""
    first = record.files[0]
    [data] = await read_outputs(service, replace(record, files=(first,)))
    response = Response(data, media_type=first.content_type)
    if len(record.files) > 1:
        response.headers["link"] = ", ".join(f'<{url}>; rel="item"' for url in links.pictures(record))
    return response


async def json_answer(service: JobService, record: JobRecord, links: Links) -> Response:
    pictures = await read_outputs(service, record)
    body = await anyio.to_thread.run_sync(json_body, record, pictures, links.pictures(record))
    return Response(body, media_type="application/json")


async def read_outputs(service: JobService, record: JobRecord) -> Sequence[bytes]:
    try:
        return await service.read_outputs(record)
    except OSError as exc:
        raise OutputUnreadable from exc


def json_body(record: JobRecord, pictures: Sequence[bytes], urls: list[str]) -> bytes:
    images = [base64.b64encode(data).decode("ascii") for data in pictures]
    answer = Base64Answer(
        image=images[0] if len(images) == 1 else images,
        images=images,
        image_format=_FORMATS[record.files[0].content_type],
        infer_time=round(record.inference_s, 3),
        outputs=len(images),
        seed=record.seed or 0,
        request_id=record.id,
        output=urls,
        identity_similarity=for_json(record.similarities),
    )
    return answer.model_dump_json().encode()
