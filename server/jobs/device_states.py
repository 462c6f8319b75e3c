"""How each device stands: its engine is being loaded, works, or is out of service; and its own figures.

Told what workers and the pool say, on the event loop. Does not know jobs beyond their steps, and draws no
conclusions: what it means that no device is left is the runner's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pulid.errors import PulidError
from server.jobs.messages import (
    EngineReady,
    Finished,
    Loading,
    OutOfService,
    Stepped,
    Stepping,
    WorkerDied,
    WorkerEvent,
)
from server.metrics import JobMetrics


class DeviceStates:
    def __init__(self, devices: Sequence[str], metrics: JobMetrics) -> None:
        self._metrics = metrics
        self._loading: dict[str, Loading] = {}  # the last word of each whose engine is being loaded
        self._in_service = set(devices)
        self._faults: dict[str, PulidError] = {}
        self._were_ready: set[str] = set()
        self._stepping_since: dict[str, float] = {}
        for device in devices:
            metrics.device_known(device)

    @property
    def loading(self) -> Loading | None:
        """Of the engines that are being loaded, how far the foremost is, where one has told."""
        return max(self._loading.values(), key=lambda loading: loading.percent, default=None)

    @property
    def out_of_service(self) -> Mapping[str, PulidError]:
        """By device: why no worker is started there any more."""
        return self._faults

    @property
    def is_any_left(self) -> bool:
        return bool(self._in_service)

    def heard(self, device: str, event: WorkerEvent, now: float) -> None:
        """`now` in seconds, on any clock."""
        match event:
            case Loading():
                self._loading[device] = event
            case EngineReady():
                self._loading.pop(device, None)
                if device in self._were_ready:
                    self._metrics.device_restarted(device)
                self._were_ready.add(device)
            case WorkerDied():
                self._loading.pop(device, None)
                self._stepping_since.pop(device, None)
            case OutOfService(error):
                self._loading.pop(device, None)
                self._in_service.discard(device)
                self._faults[device] = error
                self._metrics.device_lost(device)
            case Stepping():
                self._stepping_since[device] = now
            case Stepped():
                if (since := self._stepping_since.get(device)) is not None:
                    self._metrics.device_stepped(device, now - since)
                self._stepping_since[device] = now
            case Finished(skipped_steps=skipped_steps):
                self._metrics.device_painted(device, skipped_steps=skipped_steps)
