"""/health: is the process alive? /ready: would a job be taken now, and if not, why?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from server.api.deps import ServiceDep
from server.api.v1_schemas import ErrorAnswer
from server.errors import error_response

router = APIRouter(tags=["health"])

_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorAnswer, "description": "Not ready; the text says why."}
}


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", response_class=JSONResponse, responses=_NOT_READY)
async def ready(request: Request, service: ServiceDep) -> Response:
    """The engine is loaded and its worker lives."""
    reason, info = service.not_ready_reason, service.engine_info
    if reason is not None or info is None:
        return error_response(request, 503, f"Not ready: {reason}.", reason=reason)
    return JSONResponse(
        {"status": "ready", "profile": info.profile, "device": info.device, "notice": info.notice}
    )
