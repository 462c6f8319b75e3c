"""The HTTP server's life: how it listens, what signals do to it, how it ends.

SIGTERM and the first Ctrl-C drain: nothing new is taken, what runs is finished, HTTP answers on,
and all of it within a fixed time. A second Ctrl-C does not wait. SIGHUP reads the keys again. What
has been accepted is on disk, so when the time is over the process may simply be gone.

Around uvicorn. Knows no settings, no routes and no engine.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from server.cli.connections import KEEP_ALIVE_S, MAX_HEAD_BYTES, LimitedConnection
from server.logs import get_logger

log = get_logger("server")

BACKLOG = 2048  # connections the kernel holds until they are accepted
HURRY_S = 10.0  # the end after a second Ctrl-C, or without an engine
_RESERVE_S = 10.0  # of the drain time, for answers on their way and for closing the engines
_ANSWERS_S = 5.0  # for answers on their way
_LEAST_S = 2.0  # for closing, where the drain time is shorter
_FAILED = 1


class Drainable(Protocol):
    """What is to be finished before the end."""

    def begin_drain(self) -> None:
        """Take nothing new. May be called before the app has started."""

    async def drained(self) -> None:
        """Return when nothing runs any more."""

    def interrupt(self) -> None:
        """Tell those who still wait for an answer that there will be none but this."""


class HttpServer(uvicorn.Server):
    """`run(sockets=[...])` returns when the server has ended; `interrupted` tells whether by Ctrl-C."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Drainable,
        drain_s: float,
        reload_keys: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(uvicorn_config(app))
        self.interrupted = False
        self._service = service
        self._drain_s = drain_s
        self._reload_keys = reload_keys
        self._drain: asyncio.Task[None] | None = None
        self._last_moment = math.inf  # of the monotonic clock
        self._code = _FAILED  # when the process has to be cut off

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which knows one way to end."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._on_sigterm,
            signal.SIGINT: self._on_sigint,
            signal.SIGHUP: self._reload_keys,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def fail(self) -> None:
        """End because there is nothing left that could compute."""
        self._end_within(HURRY_S, _FAILED)
        self._stop_serving(_ANSWERS_S)

    def _on_sigterm(self) -> None:
        self._begin_drain(signal.SIGTERM)

    def _on_sigint(self) -> None:
        self.interrupted = True
        if self._drain is None:
            self._begin_drain(signal.SIGINT)
        else:
            self._end_within(HURRY_S, 128 + signal.SIGINT)
            self._stop_serving(answers_s=0.5)

    def _begin_drain(self, number: signal.Signals) -> None:
        if self._drain is not None:
            return
        log.info("draining", signal=number.name, seconds=self._drain_s)
        self._end_within(max(self._drain_s, _LEAST_S), 128 + number)
        self._service.begin_drain()
        self._drain = asyncio.get_running_loop().create_task(self._finish_what_runs())

    async def _finish_what_runs(self) -> None:
        reserve_s = min(_RESERVE_S, self._drain_s / 2)
        try:
            with suppress(TimeoutError):  # what still runs is on disk, or its caller is told
                async with asyncio.timeout(self._drain_s - reserve_s):
                    await self._service.drained()
        finally:
            self._stop_serving(min(_ANSWERS_S, reserve_s / 2))

    def _stop_serving(self, answers_s: float) -> None:
        """Uvicorn's own end: no more connections, a moment for open answers, then the app's."""
        self._service.interrupt()
        self.config.timeout_graceful_shutdown = answers_s  # type: ignore[assignment]  # it takes fractions
        self.should_exit = True

    def _end_within(self, seconds: float, code: int) -> None:
        """Whatever hangs by then, the process ends. May be called again with less time."""
        self._code = code
        moment = time.monotonic() + seconds
        if moment < self._last_moment:
            self._last_moment = moment
            timer = threading.Timer(seconds, self._cut_off)
            timer.daemon = True
            timer.start()

    def _cut_off(self) -> None:
        sys.stderr.write("Error: the server did not end in time and was cut off.\n")
        sys.stderr.flush()
        os._exit(self._code)


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=LimitedConnection,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # the app logs its requests itself, without queries
        proxy_headers=False,  # server/security/origin.py decides which to believe
        server_header=False,
    )
