"""/health: is the process alive? /ready: would a job be taken now, and if not, why? /metrics: figures.

None of them touches an engine.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from server.api.deps import NEEDS_KEY, MetricsDep, ServiceDep
from server.api.responses import described
from server.api.v1_schemas import ErrorAnswer
from server.errors import error_response
from server.jobs.service import JobService
from server.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    status: str = "ready"
    profile: str
    device: str
    notice: str
    devices: dict[str, Literal["ready", "starting", "out of service"]] = Field(
        description="how each device stands; one that is ready is enough"
    )
    out_of_service: dict[str, str] = Field(
        description="devices on which no worker is started any more, and why; empty where there is none"
    )


class NotReadyAnswer(ErrorAnswer):
    reason: str


_READINESS: dict[int | str, dict[str, Any]] = {
    200: {"model": Ready},
    503: {"model": NotReadyAnswer, "description": "Not ready; the text says why."},
}


@router.get("/health")
async def health() -> Alive:
    """The process answers."""
    return Alive()


@router.get("/ready", response_class=JSONResponse, responses=_READINESS)
async def ready(request: Request, service: ServiceDep) -> Response:
    """An engine is loaded on one device at least, its worker lives, the disk has room, no end is near."""
    reason, info = service.not_ready_reason, service.engine_info
    if reason is not None or info is None:
        return error_response(request, 503, f"Not ready: {reason}.", reason=reason)
    answer = Ready(
        profile=info.profile,
        device=info.device,
        notice=info.notice,
        devices={device: state_of(device, service) for device in service.workers},
        out_of_service={device: str(error) for device, error in service.out_of_service.items()},
    )
    return JSONResponse(answer.model_dump())


def state_of(device: str, service: JobService) -> Literal["ready", "starting", "out of service"]:
    if device in service.out_of_service:
        return "out of service"
    return "ready" if service.workers[device] else "starting"


def metrics_router(*, public: bool) -> APIRouter:
    """/metrics: names of keys are in it, so it needs one unless the operator opens it."""
    routes = APIRouter(tags=["health"], dependencies=[] if public else [NEEDS_KEY])

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **described(*([] if public else [401])),
        },
    )
    async def metrics(metrics: MetricsDep, service: ServiceDep) -> Response:
        """Figures in the Prometheus text format."""
        metrics.stands(
            ready=service.not_ready_reason is None,
            workers=service.workers,
            capacity=service.queue_capacity,
            free=service.free_bytes,
            writable=service.is_writable,
        )
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return routes
