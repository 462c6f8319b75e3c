"""Server-sent events of one job: how it stands now, and again at every change, until it has ended.

    event: status
    data: {"status": "PROCESSING", "progress": {"step": 3, "num_steps": 20, "seconds_left": 11.2}, ...}

The data is the body of the status route, with a preview of the picture for those who ask. A line of
comment every 15 seconds keeps proxies from closing a quiet stream. When the server goes down, the
streams of waiting jobs end; the caller opens them again at the next one, where the jobs still are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from server.api.deps import NEEDS_KEY, KeyDep, LinksDep, ServiceDep, SettingsDep
from server.api.responses import described
from server.api.v2 import JobId
from server.api.v2_schemas import status_of_job
from server.errors import FieldProblem, InvalidParameters
from server.jobs.job import JobNotFound, JobState
from server.jobs.live import JobView

router = APIRouter(tags=["v2"], dependencies=[NEEDS_KEY])

PING_S = 15.0
_LOOK_S = 0.5  # how soon a stream notices that the server goes down

_BOOLEAN = TypeAdapter(bool)
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # the second one is nginx's


def _preview(value: object) -> bool:
    """In all the words for true and false that a body may have."""
    try:
        return _BOOLEAN.validate_python(value)
    except ValidationError:
        raise InvalidParameters([FieldProblem("preview", "preview must be true or false.")]) from None


@router.get(
    "/v2/requests/{request_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "A stream of status bodies; it ends when the job has.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **described(400, 401, 404, 500, 503),
    },
)
async def job_events(
    request_id: JobId,
    service: ServiceDep,
    settings: SettingsDep,
    key: KeyDep,
    links: LinksDep,
    preview: Annotated[
        bool,
        BeforeValidator(_preview),
        Query(description="true: while the job is PROCESSING, with a small picture of how far it is."),
    ] = False,
) -> Response:
    """The status of a job as a stream of events."""
    await service.view(request_id, key=key)  # a 404 while there is still a status to send

    def event(view: JobView) -> bytes:
        body = status_of_job(view, links, credits_left=settings.credits)
        return b"event: status\ndata: " + body.model_dump_json().encode() + b"\n\n"

    views = service.events(request_id, key=key, previews=preview)
    stream = event_stream(views, event, going_down=lambda: service.draining)
    return EventResponse(stream, during=service.watching(request_id) if preview else nullcontext())


class EventResponse(StreamingResponse):
    """Knows when its client has left: a generator that nobody reads any more would hear it late."""

    def __init__(self, stream: AsyncIterator[bytes], *, during: AbstractContextManager[None]) -> None:
        super().__init__(stream, media_type="text/event-stream", headers=_HEADERS)
        self._during = during

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._during:
            await super().__call__(scope, receive, send)


async def event_stream(
    views: AsyncIterator[JobView],
    event: Callable[[JobView], bytes],
    *,
    going_down: Callable[[], bool],
    ping_s: float = PING_S,
) -> AsyncIterator[bytes]:
    """The bytes of the stream: `event` of every view, with pings where there is nothing to tell."""
    clock = asyncio.get_running_loop().time
    spoke, is_waiting = clock(), False
    upcoming = asyncio.ensure_future(anext(views, None))
    try:
        while not (is_waiting and going_down()):
            await asyncio.wait({upcoming}, timeout=_LOOK_S)
            if upcoming.done():
                if (view := upcoming.result()) is None:
                    return
                spoke, is_waiting = clock(), view.record.state is JobState.QUEUED
                yield event(view)
                upcoming = asyncio.ensure_future(anext(views, None))
            elif clock() - spoke >= ping_s:
                spoke = clock()
                yield b": ping\n\n"
    except JobNotFound:  # it was deleted while someone watched
        return
    finally:
        upcoming.cancel()
