"""How far the loading of an engine is: one report for each part, and one every so many seconds.

An engine tells a few times a second; this says the little that matters: lines for people every ten
seconds, and to the server as often as somebody may ask. Knows no engine and no job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pulid.engine import Engine, LoadProgress
from server.logs import get_logger

EVERY_S = 10.0

log = get_logger("loading")


class CreateEngine(Protocol):
    """Loads an engine on a device; `progress` hears on which, and how far the loading is."""

    def __call__(
        self, device: str, *, progress: Callable[[str, LoadProgress], None] | None = None
    ) -> Engine: ...


class LoadingReport:
    """Hears an engine on a device, and calls `say(device, part, percent)`."""

    def __init__(
        self,
        say: Callable[[str, str, int], None],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._every_s = every_s
        self._clock = clock
        self._part = ""
        self._said_at = 0.0

    def __call__(self, device: str, progress: LoadProgress) -> None:
        now = self._clock()
        is_end = progress.done_bytes >= progress.total_bytes
        if progress.part == self._part and not is_end and now - self._said_at < self._every_s:
            return
        self._part, self._said_at = progress.part, now
        self._say(device, progress.part, 100 * progress.done_bytes // max(progress.total_bytes, 1))


def log_loading(device: str, part: str, percent: int) -> None:
    log.info("loading the engine", device=device, part=part, percent=percent)
