"""How far the loading of an engine is, in lines for people: one for each part, and one every ten seconds.

An engine tells a few times a second; this says the little that matters. Knows no engine and no job.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pulid.engine import LoadProgress
from server.logs import get_logger

EVERY_S = 10.0

log = get_logger("loading")


class LoadingReport:
    """Hears an engine on a device, and calls `say(device, part, percent)`. Travels to a worker by pickle."""

    def __init__(
        self, say: Callable[[str, str, int], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._part = ""
        self._said_at = 0.0

    def __call__(self, device: str, progress: LoadProgress) -> None:
        now = self._clock()
        is_end = progress.done_bytes >= progress.total_bytes
        if progress.part == self._part and not is_end and now - self._said_at < EVERY_S:
            return
        self._part, self._said_at = progress.part, now
        self._say(device, progress.part, 100 * progress.done_bytes // max(progress.total_bytes, 1))


def log_loading(device: str, part: str, percent: int) -> None:
    log.info("loading the engine", device=device, part=part, percent=percent)
