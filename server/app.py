"""create_app(settings): wires the job service, the walls, the routes and the error forms; nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

import server
from pulid.engine import EngineInfo
from pulid.errors import PulidError
from pulid.profiles import AUTO
from server import engines
from server.api import (
    account,
    events,
    faces,
    health,
    identities,
    media,
    openai,
    openapi,
    page,
    replicate,
    v1,
    v2,
)
from server.api.body import BodyRoom
from server.api.context import FaultBarrier, RequestContext
from server.api.submit import SubmitTurns
from server.api.v1_schemas import parse_body
from server.errors import ErrorForm, install_error_handlers
from server.jobs.face_stage import FaceStage, FetchPhoto
from server.jobs.places import SharedPlaces
from server.jobs.runner import JobLimits, MakePool
from server.jobs.service import JobService
from server.jobs.storage import JobStorage
from server.loading import CreateEngine, LoadingReport
from server.metrics import Metrics
from server.security.auth import keys_in_force
from server.security.image_decode import check_image, decode_image
from server.security.image_fetch import FetchLimits, public_fetcher
from server.security.origin import OriginRules
from server.security.rate_limit import Budget
from server.settings import Settings
from server.tracing import Tracing, tracing_asked_for
from weights.manifest import Choice

ADAPTERS = {"openai": openai, "replicate": replicate}
BODIES_AT_ONCE = 16  # of the largest size; there is room for many more of the usual one


class App(FastAPI):
    """FastAPI with the schema that tells the truth (server/api/openapi.py)."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.document(self)
        return self.openapi_schema


def create_app(
    settings: Settings,
    *,
    create_engine: CreateEngine | None = None,
    devices: tuple[str, ...] | None = None,
    fetch_photo: FetchPhoto | None = None,
    make_pool: MakePool | None = None,
    on_ready: Callable[[EngineInfo], None] = lambda info: None,
    on_lost: Callable[[PulidError], None] = lambda error: None,
) -> FastAPI:
    """The ASGI app. Its engines are loaded when the app starts, beside the first requests.

    `create_engine`, with the `devices` it knows, and `fetch_photo` replace the model and the network;
    the first is called in the worker processes, so it must be picklable. `make_pool` replaces these
    processes: its engines are elsewhere, and `devices` are their names here. `on_ready` and `on_lost`
    hear, on the event loop, when an engine can work and when none ever will (again).
    Raises SetupError for API keys that cannot be read, for devices that are not there, and for traces
    that are asked for (OTEL_EXPORTER_OTLP_ENDPOINT) and cannot be had.
    """
    metrics = Metrics()
    tracing = tracing_asked_for(os.environ)
    devices = devices or devices_of(settings)
    service = JobService(
        storage=JobStorage(settings.data_dir, shared=shared_places(settings, devices)),
        devices=devices,
        create_engine=create_engine or engine_factory(settings, keeps_compiled_code=True),
        decode_photo=partial(decode_image, max_megapixels=settings.max_image_mp),
        parse=partial(parse_body, max_prompt_chars=settings.max_prompt_chars),
        face_stage=FaceStage(
            fetch=fetch_photo or public_fetcher(fetch_limits(settings)),
            check=partial(check_image, max_megapixels=settings.max_image_mp),
            max_mb=settings.fetch_max_mb,
        ),
        limits=job_limits(settings),
        metrics=metrics.jobs,
        on_ready=on_ready,
        on_lost=on_lost,
        make_pool=make_pool,
    )
    app = App(
        title="flux-pulid-server",
        version=server.__version__,
        lifespan=life_of(service, on_lost, tracing),
        docs_url=None,  # FastAPI's pages load their scripts from a foreign host
        redoc_url=None,
        redirect_slashes=False,
        root_path_in_servers=False,
    )
    install_state(app, settings, service, metrics)
    install_layers(app, settings, metrics, tracing)
    install_error_handlers(app, error_forms(settings))
    install_routes(app, settings)
    return app


def life_of(
    service: JobService, on_lost: Callable[[PulidError], None], tracing: Tracing | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The service starts and ends with the app."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
        except PulidError as error:
            on_lost(error)  # its owner ends the server
            yield
            return
        yield
        await service.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    return life


def install_state(app: FastAPI, settings: Settings, service: JobService, metrics: Metrics) -> None:
    """What routes and dependencies ask for."""
    app.state.settings = settings
    app.state.service = service
    app.state.metrics = metrics
    app.state.keys = keys_in_force(settings)
    app.state.budget = Budget(
        per_minute=settings.rate_limit,
        concurrency=settings.concurrency_per_key,
        unfinished_of=service.unfinished_of,
    )
    app.state.submit_turns = SubmitTurns(settings.concurrency_per_key)
    app.state.body_room = BodyRoom(int(BODIES_AT_ONCE * settings.max_body_mb * 1_000_000))


def install_routes(app: FastAPI, settings: Settings) -> None:
    routers = (
        v1.router,
        v2.router,
        events.router,
        faces.router,
        identities.router,
        media.router,
        account.router,
        health.router,
    )
    for router in routers:
        app.include_router(router)
    for name in settings.adapters:
        app.include_router(ADAPTERS[name].router)
    app.include_router(health.metrics_router(public=settings.metrics_public))
    app.include_router(page.router)


def error_forms(settings: Settings) -> dict[str, ErrorForm]:
    """The forms that adapters give to errors, by the beginnings of their addresses."""
    adapters = [ADAPTERS[name] for name in settings.adapters]
    return {prefix: adapter.error_form for adapter in adapters for prefix in adapter.PREFIXES}


def install_layers(app: FastAPI, settings: Settings, metrics: Metrics, tracing: Tracing | None) -> None:
    """From the inside out."""
    app.add_middleware(FaultBarrier)
    app.add_middleware(OriginRules, settings=settings)
    app.add_middleware(RequestContext, metrics=metrics, tracing=tracing)


def shared_places(settings: Settings, devices: tuple[str, ...]) -> SharedPlaces | None:
    """Where several servers keep what they share; None for one that has all in its data folder."""
    if settings.database_url is None or settings.media_url is None:
        return None
    return SharedPlaces(
        database_url=settings.database_url.get_secret_value(),
        media_url=settings.media_url,
        devices=len(devices),
        unfinished_per_key=settings.concurrency_per_key,
    )


def settled(settings: Settings, say: Callable[[str], object], *, first_device_only: bool = False) -> Settings:
    """The same with a profile in place of `auto`; `say` hears which, and why.

    `first_device_only`: for what uses no other of its devices. Raises SettingsError or DeviceUnavailable.
    """
    if settings.profile != AUTO:
        return settings
    name, why = engines.profile_for_cards(settings.devices, first_only=first_device_only)
    say(why)
    return settings.model_copy(update={"profile": name})


def devices_of(settings: Settings) -> tuple[str, ...]:
    """Raises UnknownProfile, SettingsError or DeviceUnavailable."""
    return tuple(engines.devices_for(engines.profile_or_exact(settings.profile), settings.devices))


def engine_factory(
    settings: Settings,
    say: Callable[[str, str, int], None] | None = None,
    *,
    keeps_compiled_code: bool = False,
) -> CreateEngine:
    """What makes an engine on a device; `say` hears of the loading: device, part, percent.

    Compiled code is kept in the data folder, by whoever may write there; others leave it where torch does.
    """
    return partial(
        engines.create_engine,
        profile=settings.profile,
        weights_dir=settings.weights_dir,
        face_mode=settings.face_mode,
        choice=choice_of(settings),
        loras=settings.loras,
        turbo_threshold=settings.turbo_threshold,
        compile_cache=settings.data_dir / "compile-cache" if keeps_compiled_code else None,
        progress=None if say is None else LoadingReport(say),
    )


def choice_of(settings: Settings) -> Choice:
    return Choice(base_model=settings.base_model, pulid=settings.pulid_version)


def fetch_limits(settings: Settings) -> FetchLimits:
    return FetchLimits(
        timeout_s=settings.fetch_timeout_s,
        max_mb=settings.fetch_max_mb,
        allow=frozenset(settings.fetch_allow),
    )


def job_limits(settings: Settings) -> JobLimits:
    return JobLimits(
        max_queued=settings.max_queued_jobs,
        job_deadline_s=settings.job_deadline_s,
        result_ttl_s=settings.result_ttl_s,
        media_ttl_s=settings.media_ttl_s,
        v2_strict=settings.v2_strict,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
