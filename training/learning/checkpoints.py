"""A training loop's memory: shows how far it is, saves now and then, goes on where it was stopped."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

_SAVE_EVERY_S = 120.0
_TELL_EVERY_S = 15.0
_SMOOTHNESS = 0.98


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Checkpoint:
    """Of everything that a loop changes. Loaded at once where there is one."""

    def __init__(self, file: Path, parts: Mapping[str, Stateful], minutes: float) -> None:
        self._file = file
        self._parts = parts
        self._seconds = 60 * minutes
        self._done = 0
        self._figures: dict[str, float] = {}
        self._console = Console(stderr=True)
        if file.exists():
            stored = torch.load(file, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(stored[name])
            self._done = stored["step"]

    def steps(self, total: int, name: str) -> Iterator[int]:
        """The steps not yet done, for as long as there is time. Saves at the end, and when told to end."""
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        started = told = saved = time.monotonic()
        first = self._done
        if first:
            torch.manual_seed(first)  # else each process would draw the same batches and the same noise again
        try:
            for step in range(first, total):
                yield step
                self._done = step + 1
                if step == 0:
                    self._write_down()
                now = time.monotonic()
                if now - told > _TELL_EVERY_S:
                    told = now
                    self._tell(name, total, (now - started) / (self._done - first))
                if now - saved > _SAVE_EVERY_S:
                    saved = now
                    self.save()
                if now - started > self._seconds:
                    self._console.print(f"{name}: the time is over at step {self._done}; run again to go on")
                    break
        finally:
            self._write_down()
            self.save()

    def note(self, **figures: Tensor) -> None:
        """Figures of this step, for the next line that is shown."""
        for name, figure in figures.items():
            value = float(figure.detach())
            self._figures[name] = _SMOOTHNESS * self._figures.get(name, value) + (1 - _SMOOTHNESS) * value

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".part")
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({**state, "step": self._done}, unfinished)
        unfinished.replace(self._file)

    def _write_down(self) -> None:
        with self._file.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"step": self._done, **self._figures}) + "\n")

    def _tell(self, name: str, total: int, seconds: float) -> None:
        self._write_down()
        figures = ", ".join(f"{what} {value:.4f}" for what, value in self._figures.items())
        left = seconds * (total - self._done) / 60
        self._console.print(
            f"{name}: step {self._done} of {total}, {figures}, "
            f"{seconds * 1000:.0f} ms a step, {left:.0f} min left"
        )
