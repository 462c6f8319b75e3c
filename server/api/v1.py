"""Routes of v1, the synchronous contract: submit, wait, answer.

The answer is the picture itself, with the figures in headers; `base64: true` asks for JSON.
Contract: docs/spec/CONTRACT.md, section 2. Painting, fetching, parsing and encoding happen
elsewhere; a route only says in which order.
"""

from __future__ import annotations

import asyncio
import base64
import json
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from server.api.body import client_left, read_json_body
from server.api.deps import ServiceDep, SettingsDep
from server.api.v1_schemas import Base64Answer, ErrorAnswer, FluxPulidRequest, parse_request
from server.errors import ClientLeft
from server.jobs.files import CONTENT_TYPES
from server.jobs.job import Job
from server.jobs.service import JobService
from server.settings import Settings

router = APIRouter(tags=["v1"])

_REQUEST_SCHEMA = {
    "required": True,
    "content": {"application/json": {"schema": FluxPulidRequest.model_json_schema()}},
}
_HEADERS = {
    "x-request-id": "Own id of this call; on every answer.",
    "x-generation-time": "Seconds.",
    "x-remaining-credits": "A constant.",
    "x-cost": "Always 0.",
    "x-seed-value": "Seed of the first picture.",
    "x-output-metadata": 'JSON: {"height", "width", "samples"}, real pixels.',
    "x-flux-pulid-notice": "Only where the profile has something to say about its pictures.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The (first) picture, or JSON with all of them for base64: true.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()},
            "application/json": {"schema": Base64Answer.model_json_schema()},
        },
        "headers": {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
        },
    },
    **{
        status: {"model": ErrorAnswer, "description": text}
        for status, text in (
            (400, "A parameter or the photo is not usable; the text says which and why."),
            (406, "The body is not JSON."),
            (413, "The body is too large."),
            (429, "The queue is full; Retry-After says when to come back."),
            (500, "A fault of the server."),
            (503, "No engine can take work now, or the device is out of memory."),
            (504, "The picture was not ready in time."),
        )
    },
}


@router.post(
    "/v1/flux-pulid",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"requestBody": _REQUEST_SCHEMA},
)
async def paint(request: Request, service: ServiceDep, settings: SettingsDep) -> Response:
    """Paint portraits of the person in a photo, and answer with them."""
    job, as_json = await submit(request, service, settings)
    await wait_with_client(request, service, job)
    headers = result_headers(job, service, settings)
    if as_json:
        body = await anyio.to_thread.run_sync(base64_body, job)
        return Response(body, media_type="application/json", headers=headers)
    first = job.files[0]
    return Response(first.data, media_type=first.content_type, headers=headers)


async def submit(request: Request, service: JobService, settings: Settings) -> tuple[Job, bool]:
    """Read, check and queue. The body, which holds the photo, is forgotten on return."""
    body = await read_json_body(request, max_mb=settings.max_body_mb)
    parse = partial(parse_request, body, max_prompt_chars=settings.max_prompt_chars)
    wire = await anyio.to_thread.run_sync(parse)
    job = service.submit(
        request.state.request_id,
        wire.to_generation(),
        photo=wire.main_face_image,
        output=wire.to_output(),
        deadline_s=settings.v1_timeout_s,
    )
    return job, wire.base64


async def wait_with_client(request: Request, service: JobService, job: Job) -> None:
    """Until the job is COMPLETED. A client that leaves takes its job with it.

    Raises what made the job FAILED, or ClientLeft.
    """
    result = asyncio.create_task(service.wait(job))
    left = asyncio.create_task(client_left(request))
    try:
        await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientLeft("The client left before its picture was done.")
        result.result()
    finally:
        service.cancel(job)  # changes nothing for a job that has ended
        result.cancel()
        left.cancel()


def result_headers(job: Job, service: JobService, settings: Settings) -> dict[str, str]:
    first = job.files[0]
    size = {"height": first.height, "width": first.width, "samples": len(job.files)}
    headers = {
        "x-generation-time": f"{job.generation_s:.3f}",
        "x-remaining-credits": str(settings.credits),
        "x-cost": "0",
        "x-seed-value": str(job.request.seed),
        "x-output-metadata": json.dumps(size, separators=(",", ":")),
    }
    if service.engine_info is not None and service.engine_info.notice:
        headers["x-flux-pulid-notice"] = service.engine_info.notice
    return headers


def base64_body(job: Job) -> bytes:
    images = [base64.b64encode(file.data).decode("ascii") for file in job.files]
    answer = Base64Answer(
        image=images[0] if len(images) == 1 else images,
        images=images,
        image_format=job.output.format,
        infer_time=round(job.generation_s, 3),
        outputs=len(images),
        seed=job.request.seed,
        request_id=job.id,
    )
    return answer.model_dump_json().encode()
