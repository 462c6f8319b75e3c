"""Replicate's interface over the same jobs: predictions. There only with the adapter `replicate`.

Two addresses with the habits of those who call them:

    /predictions       as a container made by Cog: waits for the end, unless `Prefer: respond-async`;
                       pictures come as data URIs
    /v1/predictions    as api.replicate.com: answers at once, unless `Prefer: wait`; pictures are links

A route takes the `input` out of the body and hands it to the job service as v1 and v2 do theirs;
names, ranges and limits are those of v2. Nothing here knows what a parameter means.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Header, Path, Request, Response

from server.api.body import received_json, written_json
from server.api.deps import NEEDS_BUDGET, NEEDS_KEY, KeyDep, LinksDep, ServiceDep, SettingsDep
from server.api.links import Links
from server.api.replicate_schemas import Prediction, PredictionError, error_form
from server.api.responses import REQUEST_BODY, described
from server.api.submit import accept
from server.api.v1 import read_outputs, wait_with_client
from server.api.v1_schemas import json_object
from server.errors import FieldProblem, InvalidParameters
from server.jobs.job import Api, JobRecord, JobState
from server.jobs.live import JobView
from server.jobs.service import JobService, ended_view
from server.settings import Settings

__all__ = ["PREFIXES", "error_form", "router"]

router = APIRouter(tags=["replicate"], dependencies=[NEEDS_KEY])

Address = Literal["/predictions", "/v1/predictions"]
COG: Address = "/predictions"
HOSTED: Address = "/v1/predictions"
PREFIXES = (COG, HOSTED, "/v1/models")

DEFAULT_WAIT_S = 60  # of `Prefer: wait` without a number
_LOOK_S = 0.5  # how soon a call that waits notices that the server goes down
_NOT_SERVED = ("webhook", "webhook_completed", "output_file_prefix")

PredictionId = Annotated[str, Path(description="The id of a prediction.")]
Prefer = Annotated[str, Header(description="`respond-async`, `wait`, or `wait=` with a number of seconds.")]

_ERRORS = described(400, 401, 406, 413, 429, 500, 503, model=PredictionError)
_V1_BODY = REQUEST_BODY["content"]["application/json"]
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "title": "PredictionRequest",
                "type": "object",
                "properties": {"input": _V1_BODY["schema"]},
                "required": ["input"],
            },
            "example": {"input": _V1_BODY["example"]},
        }
    },
}


@router.post(
    COG,
    response_class=Response,
    responses={
        200: {"model": Prediction, "description": "It has ended; `status` says how."},
        202: {"model": Prediction, "description": "It was accepted (`Prefer: respond-async`)."},
        **_ERRORS,
    },
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
)
async def predict(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    key: KeyDep,
    links: LinksDep,
    prefer: Prefer = "",
) -> Response:
    """Paint portraits and wait for them, as a Cog container does."""
    if "respond-async" in preferences(prefer):
        record = await accepted(request, service, settings, key, api="v2")
        return await answer(await service.view(record.id, key=key), service, links, COG, status=202)
    record = await accepted(request, service, settings, key, api="v1")
    request.state.request_id = record.id
    record = await wait_with_client(request, service, record.id)
    return await answer(ended_view(record), service, links, COG)


@router.post(
    HOSTED,
    status_code=201,
    response_class=Response,
    responses={201: {"model": Prediction, "description": "It was accepted, or has ended."}, **_ERRORS},
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
)
@router.post(
    "/v1/models/{owner}/{name}/predictions",
    status_code=201,
    response_class=Response,
    responses={201: {"model": Prediction, "description": "It was accepted, or has ended."}, **_ERRORS},
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
    summary="Create Prediction, Whatever the Model Is Called",
)
async def create_prediction(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    key: KeyDep,
    links: LinksDep,
    prefer: Prefer = "",
) -> Response:
    """Queue portraits; with `Prefer: wait`, wait for a while."""
    record = await accepted(request, service, settings, key, api="v2")
    wait_s = wait_of(prefer, at_most=settings.v1_timeout_s)
    await wait_at_most(service, record.id, wait_s)
    view = await service.view(record.id, key=key)
    # Clients take "processing" after a wait for the end, and go on polling at "starting".
    is_on_its_way = wait_s > 0 and view.record.state is JobState.PROCESSING
    return await answer(view, service, links, HOSTED, status=201, calls_it_starting=is_on_its_way)


@router.get(
    COG + "/{prediction_id}",
    response_class=Response,
    responses={200: {"model": Prediction}, **described(401, 404, 500, 503, model=PredictionError)},
)
@router.get(
    HOSTED + "/{prediction_id}",
    response_class=Response,
    responses={200: {"model": Prediction}, **described(401, 404, 500, 503, model=PredictionError)},
)
async def get_prediction(
    request: Request, prediction_id: PredictionId, service: ServiceDep, key: KeyDep, links: LinksDep
) -> Response:
    """How a prediction stands."""
    view = await service.view(prediction_id, key=key)
    return await answer(view, service, links, address_of(request))


@router.post(
    COG + "/{prediction_id}/cancel",
    response_class=Response,
    responses={200: {"model": Prediction}, **described(401, 404, 500, 503, model=PredictionError)},
)
@router.post(
    HOSTED + "/{prediction_id}/cancel",
    response_class=Response,
    responses={200: {"model": Prediction}, **described(401, 404, 500, 503, model=PredictionError)},
)
async def cancel_prediction(
    request: Request, prediction_id: PredictionId, service: ServiceDep, key: KeyDep, links: LinksDep
) -> Response:
    """Cancel a prediction. One that has ended stays as it is."""
    await service.view(prediction_id, key=key)  # a 404 for another key's
    record = await service.cancel_and_wait(prediction_id)
    return await answer(ended_view(record), service, links, address_of(request))


def address_of(request: Request) -> Address:
    return HOSTED if request.scope["route"].path.startswith(HOSTED) else COG


async def accepted(
    request: Request, service: JobService, settings: Settings, key: str, *, api: Api
) -> JobRecord:
    """The job of the `input` in the body of this call. A v1 job is one that its caller waits for."""
    waits_for = min(settings.v1_timeout_s, settings.job_deadline_s)
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        given = await anyio.to_thread.run_sync(input_of, body, settings.max_prompt_chars)
        del body
        deadline_s = waits_for if api == "v1" else settings.job_deadline_s
        return await accept(request, service, given, key=key, api=api, deadline_s=deadline_s)


def input_of(body: bytes, max_prompt_chars: int) -> bytes:
    """The body of a job. Raises UnparsableBody or InvalidParameters. Costs CPU for a large one."""
    told = json_object(body, max_prompt_chars)
    for name in _NOT_SERVED:
        if told.get(name) is not None:
            text = f"{name} is not served here. Leave it away and poll the prediction."
            raise InvalidParameters([FieldProblem(name, text)])
    given = told.get("input")
    if not isinstance(given, dict):
        raise InvalidParameters([FieldProblem("input", "input must be an object with the parameters.")])
    return written_json(given)


def preferences(prefer: str) -> dict[str, str]:
    """From `wait=5, respond-async`: each name with its value, "" where it has none. RFC 7240."""
    parts = (part.partition("=") for part in prefer.lower().split(","))
    return {name.strip(): value.strip() for name, _, value in parts}


def wait_of(prefer: str, *, at_most: float) -> float:
    """Seconds that `Prefer: wait` asks for; 0 without it."""
    asked = preferences(prefer).get("wait")
    if asked is None:
        return 0
    is_number = asked.isdecimal() and len(asked) < 7
    return min(float(asked) if is_number else DEFAULT_WAIT_S, at_most)


async def wait_at_most(service: JobService, job_id: str, seconds: float) -> None:
    """Return when the job has ended, the time is over, or the server goes down. The job goes on."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    ended = asyncio.create_task(service.wait(job_id))
    try:
        while (left := until - clock()) > 0 and not ended.done() and not service.draining:
            await asyncio.wait({ended}, timeout=min(left, _LOOK_S))
    finally:
        ended.cancel()
        await asyncio.wait({ended})  # what it raises, for a job that is gone, is told by whoever looks next
        if not ended.cancelled():
            ended.exception()


async def answer(
    view: JobView,
    service: JobService,
    links: Links,
    address: Address,
    *,
    status: int = 200,
    calls_it_starting: bool = False,
) -> Response:
    output = None
    if view.record.state is JobState.COMPLETED:
        is_hosted = address == HOSTED
        output = links.pictures(view.record) if is_hosted else await data_uris(service, view.record)
    url = f"{links.base}{links.mount}{address}/{view.record.id}"
    prediction = Prediction.of(view, url=url, output=output)
    if calls_it_starting:
        prediction.status = "starting"
    body = await anyio.to_thread.run_sync(prediction.model_dump_json)
    headers = {"cache-control": "no-store"}  # a status changes, and links are keys
    return Response(body, status, headers, media_type="application/json")


async def data_uris(service: JobService, record: JobRecord) -> list[str]:
    pictures = await read_outputs(service, record)
    return await anyio.to_thread.run_sync(
        lambda: [
            f"data:{file.content_type};base64,{base64.b64encode(data).decode('ascii')}"
            for file, data in zip(record.files, pictures, strict=True)
        ]
    )
