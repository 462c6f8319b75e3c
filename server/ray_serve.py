"""The server as a Ray Serve application, on as many machines as a Ray cluster has.

    serve run configs/ray-serve.yaml

    front    the app of `app.py`: takes requests, keeps jobs, decides whose turn it is. No engine
    engine   one engine on one device each (`jobs/engine_host.py`); as many as there is work for
    faces    fetches photos that come as URLs: the part of the face stage that needs the network

The only file that knows Ray, which is an extra; it is imported when an application is built. Jobs,
their ends and their events are the service's, and the engines' watch over their workers is the pool's.
Decisions: docs/decisions/0016-ray-serve.md.
"""

# Without `from __future__ import annotations`: Ray reads the type of `build_app`'s argument.

import asyncio
import fcntl
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulid.engine import EngineInfo
from pulid.errors import ImageRejected, PulidError
from pulid.profiles import AUTO
from server.app import create_app, engine_factory, fetch_limits, shared_places
from server.engines import profile_or_exact, require_fitting
from server.errors import RETRY_AFTER_S, retry_headers
from server.jobs.data_dir import DataDir, DataDirUnusable
from server.jobs.engine_host import EngineHost
from server.jobs.face_stage import FaceStage, FetchPhoto
from server.jobs.messages import Answer, Prepare, Question, WorkerEvent
from server.jobs.remote_engines import RemoteEngines
from server.jobs.service import JobService
from server.jobs.storage import JobStorage
from server.loading import CreateEngine
from server.logs import configure_logs, get_logger, trace_of
from server.security.image_decode import check_image, decode_image
from server.security.image_fetch import public_fetcher
from server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from ray.serve import Application

log = get_logger("ray")

JOBS_OF_ENGINE = 2  # one is painted, one is prepared beside it
HEALTH_EVERY_S = 1.0  # a replica is replaced after three looks that found it unwell
CALLS_OF_FRONT_END = 10_000  # above what the service itself lets wait
WAITING_AT_PROXY = 1_000  # calls, while no front end can take them
FETCHES_OF_READER = 32
FRONT_END_CPUS = 0.5  # as Ray counts: with one engine, all of it has room on two cores
READER_CPUS = 0.25
RESERVE_S = 10.0  # of the time to end in, for answers on their way
TRY_AGAIN_S = 1.0


class RayArguments(BaseModel):
    """The `args` of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    front_ends: int = Field(1, ge=1, le=100, description="more than one needs DATABASE_URL and MEDIA_URL")
    min_engines: int = Field(1, ge=1, le=10_000)
    max_engines: int = Field(1, ge=1, le=10_000)
    jobs_per_engine: float = Field(2.0, gt=0, le=3, description="beyond it another engine is started")
    face_readers: int = Field(1, ge=1, le=100)
    settings: dict[str, Any] = Field({}, description="by their names in docs/settings.md")


def build_app(args: RayArguments) -> "Application":
    """What `import_path: server.ray_serve:build_app` names. Raises SettingsError."""
    return application(args)


def application(
    arguments: RayArguments,
    *,
    create_engine: CreateEngine | None = None,
    fetch_photo: FetchPhoto | None = None,
) -> "Application":
    """`create_engine` and `fetch_photo` replace the model and the network; they travel by pickle."""
    from ray import serve

    settings = settings_of(arguments)
    common = {
        "health_check_period_s": HEALTH_EVERY_S,
        "graceful_shutdown_timeout_s": settings.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False},  # the address of a picture is its key
    }
    engine = serve.deployment(
        Engine,
        name="engine",
        max_ongoing_requests=JOBS_OF_ENGINE + 1,  # room for a question, or for pictures that are being saved
        ray_actor_options=device_options(settings),
        **engine_count(arguments),
        **common,
    )
    faces = serve.deployment(
        FaceReader,
        name="faces",
        num_replicas=arguments.face_readers,
        max_ongoing_requests=FETCHES_OF_READER,
        ray_actor_options={"num_cpus": READER_CPUS},
        **common,
    )
    front = serve.deployment(
        serve.ingress()(FrontEnd),
        name="front",
        num_replicas=arguments.front_ends,
        max_ongoing_requests=CALLS_OF_FRONT_END,
        max_queued_requests=WAITING_AT_PROXY,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        ray_actor_options={"num_cpus": FRONT_END_CPUS},
        **common,
    )
    return front.bind(arguments, engine.bind(arguments, create_engine), faces.bind(arguments, fetch_photo))


def anywhere(settings: Settings) -> Settings:
    """As if the server listened everywhere, for Ray decides where its proxies do. Raises SettingsError."""
    if settings.auth is None and not (settings.api_keys or settings.api_keys_file):
        raise SettingsError(
            "Ray's proxies take calls for the server, wherever http_options have them listen, and there are "
            'no API keys. Set api_keys_file, or accept that by setting auth to "none".'
        )
    return settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104


def settings_of(arguments: RayArguments) -> Settings:
    """The settings in force in this process: those of the application beat its environment.

    Raises SettingsError for those that are wrong, and for those that do not go with Ray.
    """
    if unknown := sorted(arguments.settings.keys() - Settings.model_fields.keys()):
        raise SettingsError(
            f"Unknown setting: the key {unknown[0]} in the application's settings. docs/settings.md lists "
            "the known ones."
        )
    settings = load_settings(flags={"host": "127.0.0.1", **arguments.settings}).settings
    if "host" not in arguments.settings:
        settings = anywhere(settings)
    if settings.profile == AUTO:
        raise SettingsError(
            "profile = 'auto' does not go with Ray, whose front ends may have no card, or others than the "
            "engines. Name the profile: `flux-pulid doctor --profile auto` where the cards are tells which."
        )
    if settings.devices != "all":
        raise SettingsError(
            f"devices = {settings.devices!r} does not go with Ray, which gives each engine its device. Leave "
            "it out, and say with max_engines how many there may be."
        )
    if arguments.min_engines > arguments.max_engines:
        raise SettingsError(
            f"min_engines is {arguments.min_engines}, and max_engines only {arguments.max_engines}. Raise "
            "one, or lower the other."
        )
    if arguments.front_ends > 1 and settings.database_url is None:
        raise SettingsError(
            f"front_ends is {arguments.front_ends}, and several share their jobs over PostgreSQL and one "
            "place for files. Set DATABASE_URL and MEDIA_URL, or leave it at 1."
        )
    require_fitting(profile_or_exact(settings.profile), settings.devices, settings.loras)
    return settings


def device_options(settings: Settings) -> dict[str, float]:
    """What Ray reserves for an engine."""
    on_card = profile_or_exact(settings.profile).device == "cuda"
    return {"num_cpus": 1, "num_gpus": 1 if on_card else 0}


def engine_count(arguments: RayArguments) -> dict[str, Any]:
    if arguments.min_engines == arguments.max_engines:
        return {"num_replicas": arguments.max_engines}
    return {
        "autoscaling_config": {
            "min_replicas": arguments.min_engines,
            "max_replicas": arguments.max_engines,
            "target_ongoing_requests": arguments.jobs_per_engine,
        }
    }


# what SIGTERM does


class Ending:
    """A replica that was sent SIGTERM says that it is unwell and works on. Serve starts another in its
    place, sends it nothing more, and ends it when what it has is done."""

    def __init__(self, within_s: float, then: Callable[[], None] = lambda: None) -> None:
        """`then` is called on this event loop. Whatever hangs after `within_s`, the process ends."""
        self.has_begun = False
        self._within_s = within_s
        self._then = then
        self._loop = asyncio.get_running_loop()
        hear_sigterm(self._begin)

    def require_none(self) -> None:
        if self.has_begun:
            raise RuntimeError("this replica was sent SIGTERM, and ends when its work is done")

    def _begin(self) -> None:
        if self.has_begun:
            return
        self.has_begun = True
        log.info("draining", signal="SIGTERM", seconds=self._within_s)
        timer = threading.Timer(self._within_s + RESERVE_S, os._exit, (143,))
        timer.daemon = True
        timer.start()
        self._loop.call_soon_threadsafe(self._then)


def hear_sigterm(say: Callable[[], None]) -> None:
    """Call `say`, in the main thread, in the place of Ray's own end of the process.

    Python lets only the main thread set a handler, and that is Ray's. Its handler calls this function.
    """
    from ray._private import worker

    name = "raise_sys_exit_with_custom_error_message"
    if not hasattr(worker, name):
        log.warning("this version of Ray ends replicas at once on SIGTERM")

    def instead(*_: object, **__: object) -> None:
        say()

    setattr(worker, name, instead)


# engines


class Engine:
    """A replica with one engine."""

    async def __init__(self, arguments: RayArguments, create_engine: CreateEngine | None) -> None:  # type: ignore[misc]  # awaited by Ray
        settings = settings_of(arguments)
        configure_logs(level=settings.log_level, form=settings.log_format)
        device = "cpu" if profile_or_exact(settings.profile).device == "cpu" else "cuda:0"
        self._ending = Ending(settings.drain_s)
        self._host = EngineHost(
            device=device,
            create_engine=create_engine or engine_factory(settings, keeps_compiled_code=True),
            decode_photo=partial(decode_image, max_megapixels=settings.max_image_mp),
            media=JobStorage(settings.data_dir, shared=shared_places(settings, (device,))).media,
            log_level=settings.log_level,
            log_format=settings.log_format,
        )
        try:
            await self._host.start()
        except BaseException:
            await self._host.close()
            raise

    async def info(self) -> EngineInfo:
        return self._host.require_engine()

    async def paint(self, order: Prepare, photos: Sequence[bytes]) -> AsyncGenerator[WorkerEvent, None]:
        async with aclosing(self._host.paint(order, photos)) as events:
            async for event in events:
                yield event

    async def ask(self, question: Question) -> Answer:
        return await self._host.ask(question)

    async def watch(self, job_id: str, on: bool) -> None:
        self._host.watch(job_id, on)

    async def check_health(self) -> None:
        self._ending.require_none()
        if self._host.fault is not None:
            raise self._host.fault

    async def __del__(self) -> None:  # awaited by Ray, once nothing runs
        if hasattr(self, "_host"):
            await self._host.close()


class RayEngines:
    """`Engines` over Ray's handle, which chooses the engine that has the least to do."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def info(self) -> EngineInfo:
        info: EngineInfo = await self._handle.info.remote()
        return info

    async def paint(self, order: Prepare, photos: Sequence[bytes]) -> AsyncGenerator[WorkerEvent, None]:
        call = self._handle.options(stream=True).paint.remote(order, photos)
        try:
            async for event in call:
                yield event
        except BaseException:
            call.cancel()  # the engine drops the job before its next step
            raise

    async def ask(self, question: Question) -> Answer:
        answer: Answer = await self._handle.ask.remote(question)
        return answer

    async def watch(self, job_id: str, on: bool) -> None:
        await self._handle.broadcast("watch", job_id, on).results_async()


# photos


class FaceReader:
    """A replica that fetches photos, and looks at their headers, with the server's own rules."""

    async def __init__(self, arguments: RayArguments, fetch_photo: FetchPhoto | None) -> None:  # type: ignore[misc]  # awaited by Ray
        settings = settings_of(arguments)
        configure_logs(level=settings.log_level, form=settings.log_format)
        self._ending = Ending(settings.drain_s)
        self._stage = FaceStage(
            fetch=fetch_photo or public_fetcher(fetch_limits(settings)),
            check=partial(check_image, max_megapixels=settings.max_image_mp),
            max_mb=settings.fetch_max_mb,
        )

    async def read(self, url: str) -> bytes | ImageRejected:
        """An error is returned: one that is raised would arrive as Ray's, with a traceback in its text."""
        try:
            return await self._stage.read(url)
        except ImageRejected as exc:
            return type(exc)(str(exc))

    async def check_health(self) -> None:
        self._ending.require_none()


def fetcher_over(faces: Any) -> FetchPhoto:
    """The face stage's fetcher of a front end. A call that breaks is made again, while anybody waits."""

    async def fetch(url: str) -> bytes:
        while True:
            try:
                answer: bytes | ImageRejected = await faces.read.remote(url)
            except Exception as exc:
                log.warning("call of a face reader broke", **trace_of(exc))
                await asyncio.sleep(TRY_AGAIN_S)
                continue
            if isinstance(answer, ImageRejected):
                raise answer
            return answer

    return fetch


# what Ray's proxies answer


def proxy_layers() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, where Ray is started."""
    return [Middleware(ProxyAnswers)]


class ProxyAnswers:
    """Around Ray's proxy: its own refusals in the form of all errors, and one x-request-id an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def told(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                is_ours = "x-content-type-options" in headers  # every answer of the app has it
                is_replaced = not is_ours and message["status"] >= 400
                if is_ours:
                    headers["x-request-id"] = headers["x-request-id"]  # the first; Ray adds another
                if is_replaced:
                    await refusal(message["status"])(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self.app(scope, receive, told)


def refusal(status: int) -> JSONResponse:
    """In the place of an answer of Ray's: nobody could take the call, or whoever had it is gone."""
    request_id = secrets.token_hex(16)
    if status == 429:
        text = "More calls wait than the server can hold. Try again in a few seconds."
    else:
        status = 503
        text = "The server cannot take work now: it is being replaced. Try again in a few seconds."
    headers = {**retry_headers(status), "x-request-id": request_id, "x-content-type-options": "nosniff"}
    return JSONResponse({"error": text, "request_id": request_id}, status, headers)


# front ends


class FrontEnd:
    """A replica with the app, and a data folder."""

    async def __init__(self, arguments: RayArguments, engine: Any, faces: Any) -> None:  # type: ignore[misc]  # awaited by Ray
        settings = settings_of(arguments)
        configure_logs(level=settings.log_level, form=settings.log_format)
        self._loss: PulidError | None = None
        self._folder = await asyncio.to_thread(OwnFolder, settings)
        self._app = create_app(
            settings.model_copy(update={"data_dir": self._folder.path}),
            devices=tuple(f"ray:{number}" for number in range(JOBS_OF_ENGINE * arguments.max_engines)),
            fetch_photo=fetcher_over(faces),
            make_pool=partial(RemoteEngines, engines=RayEngines(engine)),
            on_lost=partial(setattr, self, "_loss"),
        )
        service: JobService = self._app.state.service
        self._app.router.lifespan_context = finishing(
            self._app.router.lifespan_context, service, settings.drain_s, self._require_life
        )
        self._ending = Ending(settings.drain_s, then=partial(end_in_time, service, settings.drain_s))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        self._ending.require_none()
        self._require_life()

    def _require_life(self) -> None:
        if self._loss is not None:
            raise self._loss


class OwnFolder:
    """A data folder that no other front end has. One whose replica is gone is taken over."""

    def __init__(self, settings: Settings) -> None:
        """Blocks; without a shared database until the front end before this one has ended, if it does."""
        self._lock: int | None = None
        if settings.database_url is None:
            self.path = settings.data_dir
            self._wait_until_free(settings.drain_s + 2 * RESERVE_S)
        else:
            self.path = self._first_free(settings.data_dir)

    def close(self) -> None:
        """Let another have it. The end of the process does so, too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _wait_until_free(self, seconds: float) -> None:
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            folder = DataDir(self.path)
            try:
                folder.open()
            except DataDirUnusable:
                time.sleep(0.2)
            else:
                folder.close()
                return

    def _first_free(self, root: Path) -> Path:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = 0
        while not self._takes(root / f"front-end-{number}.lock"):
            number += 1
        return root / f"front-end-{number}"

    def _takes(self, path: Path) -> bool:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True


def finishing(
    life: Callable[[FastAPI], AbstractAsyncContextManager[Any]],
    service: JobService,
    within_s: float,
    require_life: Callable[[], None],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The app's life, at whose end what runs is finished; what waits is left to others, or to the next."""

    @asynccontextmanager
    async def finished(app: FastAPI) -> AsyncIterator[None]:
        async with life(app):
            require_life()
            yield
            service.begin_drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await service.drained()
            service.interrupt()

    return finished


def end_in_time(service: JobService, within_s: float) -> None:
    """Callers who still wait near the end of the time hear it, instead of a broken connection."""
    reserve_s = min(RESERVE_S, within_s / 2)
    loop = asyncio.get_running_loop()
    loop.call_later(within_s - reserve_s, service.begin_drain)
    loop.call_later(within_s - reserve_s, service.interrupt)
