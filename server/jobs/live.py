"""A job that has not ended: its record, and what exists only while the server runs.

Touched on the event loop alone. Knows no store, no worker, no HTTP.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pulid.engine import GenerationRequest
from server.jobs.files import OutputOptions
from server.jobs.job import JobRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBody:
    """A request body that was valid."""

    request: GenerationRequest  # without the photo
    photo: str  # URL, data URI or base64
    output: OutputOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """How a job stands now, for whoever asks."""

    record: JobRecord
    step: int = 0  # denoising steps done
    queue_position: int | None = None  # 0: next; None: not waiting


@dataclass(slots=True, eq=False)
class LiveJob:
    record: JobRecord
    request: GenerationRequest
    output: OutputOptions
    alone: bool = False  # a worker died over it: it is prepared and run with nothing beside it
    prepare_sent: bool = False
    step: int = 0
    failures: int = 0  # attempts that ended in a fault which another attempt may not meet
    ending: bool = False  # its end is being written; nothing else may happen to it
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None  # its deadline
    photo_task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    def touch(self) -> None:
        """Wake whoever watches."""
        self.changed.set()
        self.changed = asyncio.Event()

    def back_to_queue(self) -> None:
        self.prepare_sent = False
        self.step = 0
