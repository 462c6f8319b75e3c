"""A job that has not ended: its record, and what exists only while the server runs.

Touched on the event loop alone. Knows no store, no worker, no HTTP.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pulid.engine import GenerationRequest
from server.jobs.files import OutputOptions
from server.jobs.job import JobRecord
from server.jobs.scheduler import Shape
from server.tracing import JobTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBody:
    """A request body that was valid."""

    request: GenerationRequest  # without the photos
    photos: tuple[str, ...]  # URLs, data URIs or base64; people refer to them by number
    output: OutputOptions
    places: tuple[str, ...] = ()  # the field each photo came in; empty where there is only one it can be


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """How a job stands now, for whoever asks."""

    record: JobRecord
    step: int = 0  # denoising steps done
    seconds_left: float | None = None  # for the steps that are left
    preview: bytes | None = None  # a small JPEG; only for those who asked for it
    queue_position: int | None = None  # 0: next; None: not waiting


@dataclass(slots=True, eq=False)
class LiveJob:
    record: JobRecord
    request: GenerationRequest
    output: OutputOptions
    photos: int = 1
    places: tuple[str, ...] = ()  # as in `ParsedBody`
    photo_marks: tuple[int, ...] = ()  # as in `at_hand.py`; none before they are on disk
    alone: bool = False  # a worker died over it: it is prepared and run with nothing beside it
    prepare_sent: bool = False
    step: int = 0
    seconds_left: float | None = None  # until its last step is done; None before the second one is
    watchers: int = 0  # callers who look at its previews
    preview: bytes | None = None  # the newest one; None where nobody looks
    failures: int = 0  # attempts that ended in a fault which another attempt may not meet
    ending: bool = False  # its end is being written; nothing else may happen to it
    lost: bool = False  # another server has it by now; it has "ended" here, and its record says nothing
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # it may have a turn
    stored: asyncio.Event = field(default_factory=asyncio.Event)  # its row is on disk
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None  # its deadline
    photos_task: asyncio.Task[None] | None = None
    end_task: asyncio.Task[None] | None = None
    trace: JobTrace | None = None  # None where there are no traces, and once it has heard the end
    _first_step_at: float = 0.0  # when it was done, in the seconds that `stepped` is told

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def shape(self) -> Shape:
        """Jobs that share it share what an engine records of a step."""
        record = self.record
        return (record.height, record.width, record.max_sequence_length, record.num_outputs)

    def touch(self) -> None:
        """Wake whoever watches."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stepped(self, step: int, num_steps: int, preview: bytes | None, *, now: float) -> None:
        """`step` of `num_steps` are done. The first takes longer than others, so it is not counted on."""
        if step == 1:
            self._first_step_at = now
        else:
            self.seconds_left = (now - self._first_step_at) / (step - 1) * (num_steps - step)
        self.step = step
        if self.watchers and preview is not None:
            self.preview = preview

    def back_to_queue(self) -> None:
        self.prepare_sent = False
        self.step = 0
        self.seconds_left = self.preview = None
