"""One table: exception → status. And the one form in which every error leaves the server.

    {"error": "<a sentence>", "request_id": "32 hex", "fields": [{"field": ..., "message": ...}]}

`fields` only where single fields of the request are wrong. Client libraries read `error` and
nothing else. No traceback, no path, no part of the input is ever in it. The word "credits" stays
out of these texts: clients take a 406 that has it for an empty account.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pulid.errors import BadRequest, Busy, EngineFailed, OutOfMemory, PulidError
from server.jobs.job import JobTimedOut, NotReady

RETRY_AFTER_S = 10  # about one picture

INTERNAL_FAULT = "The server failed on this request. Trying again may help; its log has this request id."


@dataclass(frozen=True, slots=True)
class FieldProblem:
    field: str
    message: str


class InvalidParameters(BadRequest):
    """Fields of the request body are missing, of the wrong type or out of range."""

    code = "invalid_parameters"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(" ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


class UnsupportedBody(BadRequest):
    code = "unsupported_body"


class BodyTooLarge(BadRequest):
    code = "body_too_large"


class ClientLeft(PulidError):
    """Nobody reads this answer; it exists for the log."""

    code = "client_left"


STATUS: dict[type[PulidError], int] = {
    BadRequest: 400,
    UnsupportedBody: 406,
    BodyTooLarge: 413,
    Busy: 429,
    ClientLeft: 499,
    EngineFailed: 500,
    NotReady: 503,
    OutOfMemory: 503,
    JobTimedOut: 504,
    PulidError: 500,
}

_HTTP_TEXTS = {
    404: "Nothing is at this address. Pictures are made by POST /v1/flux-pulid.",
    405: "This address does not take that method; the Allow header names the ones it takes.",
}


def status_of(exc: PulidError) -> int:
    """The status of the nearest class in the table."""
    return next(STATUS[cls] for cls in type(exc).__mro__ if cls in STATUS)


def error_response(
    request: Request,
    status: int,
    message: str,
    *,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    body = {"error": message, "request_id": request.state.request_id, **extra}
    return JSONResponse(body, status, headers={**(headers or {}), **_retry_headers(status)})


def _retry_headers(status: int) -> dict[str, str]:
    if status not in (429, 503):
        return {}
    again = datetime.now(UTC) + timedelta(seconds=RETRY_AFTER_S)
    return {
        "retry-after": str(RETRY_AFTER_S),
        "x-rate-limit-reset-at-utc": again.isoformat(timespec="seconds"),
    }


def answer_pulid_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, PulidError)  # noqa: S101  # what the handler is registered for
    extra: dict[str, Any] = {}
    if isinstance(exc, InvalidParameters):
        extra["fields"] = [{"field": p.field, "message": p.message} for p in exc.problems]
    return error_response(request, status_of(exc), str(exc), **extra)


def answer_http_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)  # noqa: S101  # what the handler is registered for
    text = _HTTP_TEXTS.get(exc.status_code, str(exc.detail))
    return error_response(request, exc.status_code, text, headers=exc.headers)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(PulidError, answer_pulid_error)
    app.add_exception_handler(HTTPException, answer_http_error)
