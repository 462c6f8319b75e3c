"""The outermost layer of the app: an id for each request, one log line, and no exception past it.

Pure ASGI, since a route must see its client leave. A path with a trailing slash means the path
without it; nothing is ever redirected, because clients would follow with an empty answer.
"""

from __future__ import annotations

import secrets
import time

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_FAULT, error_response
from server.logs import get_logger, trace_of

log = get_logger("http")


class RequestContext:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)  # a client's own id is never taken over
        scope.setdefault("state", {})["request_id"] = request_id
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].removesuffix("/")
        answer = _Answer(send, request_id)
        started = time.monotonic()
        try:
            await self.app(scope, receive, answer)
        except Exception as exc:
            log.error("request fault", request_id=request_id, **trace_of(exc))
            if answer.status is None:
                response = error_response(Request(scope), 500, INTERNAL_FAULT)
                await response(scope, receive, answer)
        log.info(
            "request",
            request_id=request_id,
            method=scope["method"],
            route=getattr(scope.get("route"), "path", None),
            status=answer.status,
            duration_ms=round((time.monotonic() - started) * 1000, 1),
        )


class _Answer:
    """`send`, with the request id in the headers, remembering the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
