"""The outer layers of the app: an id, a log line and a count for each request; no exception past them.

Pure ASGI, since a route must see its client leave. A path with a trailing slash means the path
without it; nothing is ever redirected, because clients would follow with an empty answer. What is
under /json is the same app again, seen by its routes as the `root_path` of the request.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_FAULT, answer_pulid_error, error_response
from server.jobs.job import GoingDown
from server.logs import get_logger, trace_of
from server.metrics import Metrics
from server.tracing import RequestTrace, Tracing

log = get_logger("http")

JSON_MOUNT = "/json"  # the base URL of clients that expect JSON from v1


class RequestContext:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A client's own id is never taken over.
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(16)
        _take_path_apart(scope)
        if self._tracing is not None and scope["method"] == "POST":  # the rest is looking, and often
            traceparent = Headers(scope=scope).get("traceparent")
            state["trace"] = self._tracing.request(method=scope["method"], traceparent=traceparent)
        answer = Answer(send, scope)
        started = time.monotonic()
        try:
            await self.app(scope, receive, answer)
        finally:
            self._record(scope, answer.status, time.monotonic() - started)

    def _record(self, scope: Scope, status: int | None, seconds: float) -> None:
        """The route's template and never the address: that of a picture is its key."""
        route = getattr(scope.get("route"), "path", None)
        template = None if route is None else scope["root_path"] + route
        log.info(
            "request",
            request_id=scope["state"]["request_id"],
            method=scope["method"],
            route=template,
            status=status,
            duration_ms=round(seconds * 1000, 1),
        )
        code = status or 499  # the client left before there was an answer
        self._metrics.answered(
            method=scope["method"],
            route=template or "",
            code=code,
            key=scope["state"].get("key", ""),
            seconds=seconds,
        )
        trace: RequestTrace | None = scope["state"].get("trace")
        if trace is not None:
            trace.answered(route=template or "", code=code, request_id=scope["state"]["request_id"])


class FaultBarrier:
    """The innermost layer: what no route foresaw becomes an answer, which CORS can still mark.

    So does what is still open when the server ends: uvicorn cancels it then.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = Answer(send, scope)
        try:
            await self.app(scope, receive, answer)
        except asyncio.CancelledError:
            if answer.status is not None:
                raise
            await answer_pulid_error(Request(scope), GoingDown())(scope, receive, answer)
        except Exception as exc:
            log.error("request fault", request_id=scope["state"]["request_id"], **trace_of(exc))
            if answer.status is None:
                response = error_response(Request(scope), 500, INTERNAL_FAULT)
                await response(scope, receive, answer)


class Answer:
    """`send`, with the headers of every answer, remembering the status."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._scope = scope
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._scope["state"]["request_id"]
            headers["x-content-type-options"] = "nosniff"
            for name, value in self._scope["state"].get("rate_limit_headers", {}).items():
                headers.setdefault(name, value)  # a refusal says itself when to come again
        await self._send(message)


def _take_path_apart(scope: Scope) -> None:
    if len(scope["path"]) > 1:
        scope["path"] = scope["path"].removesuffix("/")
    scope["root_path"] = JSON_MOUNT if scope["path"].startswith(f"{JSON_MOUNT}/") else ""
