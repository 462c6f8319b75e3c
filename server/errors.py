"""One table: error code -> status. And the one form in which every error leaves the server.

    {"error": "<a sentence>", "request_id": "32 hex", "fields": [{"field": ..., "message": ...}]}

`fields` only where single fields of the request are wrong. Client libraries read `error` and
nothing else. Addresses of adapters have forms of their own, made from this one. No traceback, no
path, no part of the input is ever in it. The word "credits" stays out of these texts: clients take
a 406 that has it for an empty account.

The table has codes, not classes, because a job that FAILED is known by the code in its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pulid.errors import BadRequest, PulidError

RETRY_AFTER_S = 10  # what callers are told: about one picture

INTERNAL_FAULT = "The server failed on this request. Trying again may help; its log has this request id."


@dataclass(frozen=True, slots=True)
class FieldProblem:
    field: str
    message: str


class InvalidParameters(BadRequest):
    """Fields of the request are missing, of the wrong type or out of range."""

    code = "invalid_parameters"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(" ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


class UnparsableBody(BadRequest):
    """The body is no JSON object at all."""

    code = "unparsable_body"


class UnsupportedBody(BadRequest):
    code = "unsupported_body"


class BodyTooLarge(BadRequest):
    code = "body_too_large"


class OutputUnreadable(PulidError):
    """The disk did not give back a picture that was written to it."""

    code = "output_unreadable"

    def __init__(self) -> None:
        super().__init__("The picture was made but cannot be read now. Try again in a few seconds.")


class ClientLeft(PulidError):
    """Nobody reads this answer; it exists for the log."""

    code = "client_left"


STATUS: dict[str, int] = {
    "bad_request": 400,
    "identity_rejected": 400,
    "image_rejected": 400,
    "invalid_parameters": 400,
    "no_face": 400,
    "several_faces": 400,
    "unparsable_body": 400,
    "unauthorized": 401,
    "not_found": 404,
    "unsupported_body": 406,
    "cancelled": 409,
    "idempotency_conflict": 409,
    "body_too_large": 413,
    "busy": 429,
    "rate_limited": 429,
    "client_left": 499,
    "engine_failed": 500,
    "interrupted": 503,
    "not_ready": 503,
    "out_of_memory": 503,
    "output_unreadable": 503,
    "storage_failed": 503,
    "storage_full": 503,
    "timed_out": 504,
}

_HTTP_TEXTS = {
    404: "Nothing is at this address. Pictures are made by POST /v1/flux-pulid.",
    405: "This address does not take that method; the Allow header names the ones it takes.",
}
# Makes another body of the status, the error code where there is one, and the usual body.
ErrorForm = Callable[[int, str | None, Mapping[str, Any]], Mapping[str, Any]]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def status_of(code: str | None) -> int:
    """The status for an error code; one that is not in the table is our own fault."""
    return STATUS.get(code or "", 500)


def error_response(
    request: Request,
    status: int,
    message: str,
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """`code` is told only where the address has an error form that wants it."""
    body: Mapping[str, Any] = {"error": message, "request_id": request.state.request_id, **extra}
    if form := _form_of(request):
        body = form(status, code, body)
    return JSONResponse(body, status, headers={**retry_headers(status), **(headers or {})})


def _form_of(request: Request) -> ErrorForm | None:
    """By address and not by route: what no route has seen is answered in the same form."""
    forms: Mapping[str, ErrorForm] = request.app.state.error_forms
    path = request.scope["path"].removeprefix(request.scope["root_path"]) + "/"
    return next((form for prefix, form in forms.items() if path.startswith(f"{prefix}/")), None)


def retry_headers(status: int) -> dict[str, str]:
    """When to come again, where the status says that it may help."""
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
    headers: Mapping[str, str] | None = getattr(exc, "headers", None)
    return error_response(request, status_of(exc.code), str(exc), code=exc.code, headers=headers, **extra)


def answer_http_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)  # noqa: S101  # what the handler is registered for
    text = _HTTP_TEXTS.get(exc.status_code, str(exc.detail))
    headers = {"allow": ", ".join(allowed_methods(request))} if exc.status_code == 405 else exc.headers
    return error_response(request, exc.status_code, text, headers=headers)


def allowed_methods(request: Request) -> list[str]:
    """The methods of an address, over all routes that share it."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if taken(method)]


def install_error_handlers(app: FastAPI, forms: Mapping[str, ErrorForm] | None = None) -> None:
    """`forms`: error forms of their own, by the beginnings of addresses."""
    app.state.error_forms = forms or {}
    app.add_exception_handler(PulidError, answer_pulid_error)
    app.add_exception_handler(HTTPException, answer_http_error)
