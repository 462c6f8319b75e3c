"""`flux-pulid serve`: run the HTTP server until it is stopped, or until it has no engine.

Exit codes: 0 stopped by SIGTERM, 130 by Ctrl-C, 2 wrong settings, 1 anything else; 143 when the
time to end in was over.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from fastapi import FastAPI

from pulid.engine import EngineInfo
from pulid.errors import DeviceUnavailable, PulidError, SetupError, WeightsMissing
from server.app import create_app, settled
from server.checks.examination import warnings_at_start
from server.cli.failures import clean_exit
from server.cli.flags import used, with_flags
from server.cli.http_server import BACKLOG, HttpServer
from server.logs import configure_logs, get_logger
from server.security.auth import ApiKeys
from server.settings import Settings, describe, load_settings

log = get_logger("server")


@with_flags(Settings)
def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    print_settings: Annotated[
        bool, typer.Option("--print-settings", help="Show what is in force and from where, then end.")
    ] = False,
    **given: str | None,
) -> None:
    """Serve the HTTP interface: v1, v2 and what belongs to them."""
    with clean_exit():
        loaded = load_settings(flags=used(given), config=config)
        if print_settings:
            typer.echo(describe(loaded))
        else:
            with pointing_to_doctor():
                settings = settled(loaded.settings, typer.echo)
                run_server(settings, make_app=context.obj or create_app)


@contextmanager
def pointing_to_doctor() -> Iterator[None]:
    """A start ends at the first thing that is missing; say where all of them are told."""
    try:
        yield
    except (DeviceUnavailable, WeightsMissing) as exc:
        gap = "\n" if "\n" in str(exc) else " "
        raise type(exc)(f"{exc}{gap}`flux-pulid doctor` lists everything that is missing.") from exc


def run_server(settings: Settings, *, make_app: Callable[..., FastAPI]) -> None:
    """Blocks until the server ends. Raises what cost it its engine, or KeyboardInterrupt.

    `make_app` is `create_app`, or that with some arguments in place.
    """
    configure_logs(level=settings.log_level, form=settings.log_format)
    losses: list[PulidError] = []

    def stop(error: PulidError) -> None:
        losses.append(error)
        server.fail()

    with listen(settings.host, settings.port) as listener:
        url = url_of(listener)
        app = make_app(settings, on_ready=partial(announce, url), on_lost=stop)
        keys: ApiKeys | None = app.state.keys
        server = HttpServer(
            app,
            service=app.state.service,
            drain_s=settings.drain_s,
            reload_keys=partial(reload_keys, keys),
        )
        for warning in warnings_at_start(settings):
            log.warning(warning)
        typer.echo(f"Listening on {url} - loading the engine ...")
        server.run(sockets=[listener])
    if losses:
        raise losses[0]
    if server.interrupted:
        raise KeyboardInterrupt


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SetupError before any model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        # asyncio's and socket's own texts repeat the address; an unknown name has no number of the system's
        why = exc.strerror if isinstance(exc, socket.gaierror) else os.strerror(exc.errno or 0)
        raise SetupError(
            f"Cannot listen on {host}, port {port}: {why}. Choose another with --host or --port."
        ) from exc


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(url: str, info: EngineInfo) -> None:
    typer.echo(f"Ready: POST {url}/v1/flux-pulid, profile {info.profile} on {info.device}.")
    if loras := info.details.get("loras"):
        typer.echo(f"LoRA: {loras}")
    if info.notice:
        typer.echo(f"Note: {info.notice}")


def reload_keys(keys: ApiKeys | None) -> None:
    """What SIGHUP does."""
    if keys is None:
        log.info("no API keys to reload")
    else:
        keys.reload()
