"""What routes ask for by type: services, settings, whose key it is, links. Filled in by app.py.

All of them are coroutines: FastAPI calls a plain function in a thread, and threads are for work
that blocks.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from server.api.links import Links
from server.jobs.service import JobService
from server.metrics import Metrics
from server.security.auth import require_key
from server.security.origin import public_base
from server.security.rate_limit import require_budget
from server.settings import Settings


async def _service(request: Request) -> JobService:
    service: JobService = request.app.state.service
    return service


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _links(request: Request) -> Links:
    return Links(public_base(request), request.scope["root_path"])


ServiceDep = Annotated[JobService, Depends(_service)]
SettingsDep = Annotated[Settings, Depends(_settings)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
LinksDep = Annotated[Links, Depends(_links)]
KeyDep = Annotated[str, Depends(require_key)]  # the key's name; "" where there are no keys
NEEDS_KEY = Depends(require_key)
NEEDS_BUDGET = Depends(require_budget)
