"""What routes ask for by type: the job service, the settings. Filled in by app.py."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from server.jobs.service import JobService
from server.settings import Settings


def _service(request: Request) -> JobService:
    service: JobService = request.app.state.service
    return service


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


ServiceDep = Annotated[JobService, Depends(_service)]
SettingsDep = Annotated[Settings, Depends(_settings)]
