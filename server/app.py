"""create_app(settings): wires the job service, the routes and the error forms; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

import server
from pulid.engine import Engine, EngineInfo
from pulid.errors import PulidError
from server import engines
from server.api import health, v1
from server.api.context import RequestContext
from server.errors import install_error_handlers
from server.jobs.face_stage import FaceStage, FetchPhoto
from server.jobs.service import JobService
from server.security.image_decode import decode_image
from server.security.image_fetch import FetchLimits, public_fetcher
from server.settings import Settings


def create_app(
    settings: Settings,
    *,
    create_engine: Callable[[], Engine] | None = None,
    fetch_photo: FetchPhoto | None = None,
    on_ready: Callable[[EngineInfo], None] = lambda info: None,
    on_lost: Callable[[PulidError], None] = lambda error: None,
) -> FastAPI:
    """The ASGI app. Its engine is loaded when the app starts, beside the first requests.

    `create_engine` and `fetch_photo` replace the model and the network. `on_ready` and `on_lost`
    hear, on the event loop, when the engine can work and when it never will (again).
    """
    service = JobService(
        create_engine=create_engine or engine_factory(settings),
        face_stage=FaceStage(
            fetch=fetch_photo or public_fetcher(fetch_limits(settings)),
            decode=partial(decode_image, max_megapixels=settings.max_image_mp),
        ),
        max_queued=settings.max_queued_jobs,
        on_ready=on_ready,
        on_lost=on_lost,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="flux-pulid-server",
        version=server.__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from a foreign host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.service = service
    app.add_middleware(RequestContext)
    install_error_handlers(app)
    app.include_router(health.router)
    app.include_router(v1.router)
    return app


def engine_factory(settings: Settings) -> Callable[[], Engine]:
    return partial(
        engines.create_engine,
        profile=settings.profile,
        device=settings.devices,
        weights_dir=settings.weights_dir,
        face_mode=settings.face_mode,
    )


def fetch_limits(settings: Settings) -> FetchLimits:
    return FetchLimits(
        timeout_s=settings.fetch_timeout_s,
        max_mb=settings.fetch_max_mb,
        allow=frozenset(settings.fetch_allow),
    )
