"""OpenAI's image generation over the same jobs. There only with the adapter `openai`.

The photo comes as `main_face_image`, a field of our own, and so may every other parameter of v1;
OpenAI's Python client sends them with `extra_body`. The call waits like v1, with its walls and its
limits. Errors of this address have OpenAI's form, so that its clients can show them.
"""

from __future__ import annotations

import base64
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from server.api.body import received_json, written_json
from server.api.deps import NEEDS_BUDGET, NEEDS_KEY, KeyDep, LinksDep, ServiceDep, SettingsDep
from server.api.links import Links
from server.api.openai_schemas import (
    REQUEST_SCHEMA,
    Image,
    ImagesAnswer,
    OpenAIError,
    OpenAIWords,
    error_form,
    translated,
)
from server.api.responses import described
from server.api.similarity import for_json
from server.api.submit import accept
from server.api.v1 import figures, read_outputs, wait_with_client
from server.api.v1_schemas import json_object
from server.errors import error_response, status_of
from server.jobs.job import JobRecord, JobState
from server.jobs.service import JobService

__all__ = ["PREFIXES", "error_form", "router"]

router = APIRouter(tags=["openai"], dependencies=[NEEDS_KEY])

_ADDRESS = "/v1/images/generations"
PREFIXES = (_ADDRESS,)

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": REQUEST_SCHEMA,
            "example": {"main_face_image": "https://example.com/face.jpg", "prompt": "portrait"},
        }
    },
}


@router.post(
    _ADDRESS,
    response_class=Response,
    responses={
        200: {"model": ImagesAnswer, "description": "The pictures, or links to them."},
        **described(400, 401, 406, 409, 413, 429, 500, 503, 504, model=OpenAIError),
    },
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
)
async def generate_images(
    request: Request, service: ServiceDep, settings: SettingsDep, key: KeyDep, links: LinksDep
) -> Response:
    """Paint portraits of the person in a photo."""
    deadline_s = min(settings.v1_timeout_s, settings.job_deadline_s)
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        words, given = await anyio.to_thread.run_sync(body_of, body, settings.max_prompt_chars)
        del body
        record = await accept(request, service, given, key=key, api="v1", deadline_s=deadline_s)
        del given  # the photo in it is the job's by now
    request.state.request_id = record.id
    record = await wait_with_client(request, service, record.id)
    if record.state is not JobState.COMPLETED:
        code = record.error_code
        return error_response(request, status_of(code), record.error or "", code=code)
    answer = await answer_of(record, words, service, links)
    body_json = await anyio.to_thread.run_sync(lambda: answer.model_dump_json(exclude_none=True))
    return Response(body_json, headers=figures(record, service, settings), media_type="application/json")


def body_of(body: bytes, max_prompt_chars: int) -> tuple[OpenAIWords, bytes]:
    """OpenAI's words, and the body of a job. Raises UnparsableBody or InvalidParameters. Costs CPU."""
    words, fields = translated(json_object(body, max_prompt_chars))
    return words, written_json(fields)


async def answer_of(record: JobRecord, words: OpenAIWords, service: JobService, links: Links) -> ImagesAnswer:
    if words.response_format == "url":
        data = [Image(url=url) for url in links.pictures(record)]
    else:
        pictures = await read_outputs(service, record)
        data = await anyio.to_thread.run_sync(
            lambda: [Image(b64_json=base64.b64encode(picture).decode("ascii")) for picture in pictures]
        )
    return ImagesAnswer(
        created=int(record.finished_at or 0),
        data=data,
        seed=record.seed or 0,
        identity_similarity=for_json(record.similarities),
    )
