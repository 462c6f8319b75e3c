"""Whose turn is it? Plain Python: no clock, no event loop, no I/O; time comes in as an argument.

Fair between keys: the key with the fewest jobs on devices is next, then the one that was served
longest ago. First come, first served inside a key, but for the shape a device has just painted: a
job of that shape may overtake a few others, a few times, for a short while. A job that a worker
died over goes first of all, any other job that comes back goes first within its key.

Knows no engine and no states of a job. Everything is kept in sorted lists, so that a decision looks
at the best key and its first few jobs, and never walks the queue; a change costs one bisection and
the moving of some bytes (microseconds with 10,000 waiting).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any

from pulid.errors import Busy

LOOK_AHEAD = 8  # jobs of a key among which a device may choose one of its shape
MAX_OVERTAKEN = 8  # times
MAX_OVERTAKEN_S = 30.0  # seconds since it was first overtaken

Shape = tuple[int, ...]
Place = tuple[int, float, int]
Claim = tuple[bool, int, int, int]

_ALONE, _FRONT, _ORDINARY = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What the scheduler knows of a job."""

    job_id: str
    key: str  # name of the API key
    shape: Shape  # height, width, text length, outputs
    submitted_at: float  # seconds, on the clock of `now`
    alone: bool = False  # a worker died over it


@dataclass(slots=True, eq=False)
class _Entry:
    waiting: Waiting
    place: Place  # in its key; smaller is earlier
    ready: bool = False
    overtaken: int = 0
    overtaken_since: float | None = None

    @property
    def is_alone(self) -> bool:
        return self.place[0] == _ALONE

    def may_be_overtaken(self, now: float) -> bool:
        if self.place[0] != _ORDINARY or self.overtaken >= MAX_OVERTAKEN:
            return False
        return self.overtaken_since is None or now - self.overtaken_since < MAX_OVERTAKEN_S

    def let_pass(self, now: float) -> None:
        self.overtaken += 1
        if self.overtaken_since is None:
            self.overtaken_since = now


@dataclass(slots=True, eq=False)
class _Key:
    """The jobs of one API key. Kept when it has none: who was served last must not look new."""

    number: int  # order of appearance
    running: int = 0
    served: int = 0  # number of its last turn; 0: never
    waiting: list[_Entry] = field(default_factory=list)  # by place
    ready: list[_Entry] = field(default_factory=list)  # those of them that can start

    @property
    def claim(self) -> Claim:
        """Smaller is better."""
        has_alone = bool(self.ready) and self.ready[0].is_alone
        return (not has_alone, self.running, self.served, self.number)


_place_of = attrgetter("place")
_claim_of = attrgetter("claim")


class Scheduler:
    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._entries: dict[str, _Entry] = {}  # by job
        self._keys: dict[str, _Key] = {}
        self._turns: list[_Key] = []  # keys with ready jobs, best claim first
        self._rounds = _Rounds()
        self._running: dict[str, _Key] = {}  # by job
        self._shapes: dict[str, Shape] = {}  # by device: of the last job it was given
        self._asked: tuple[str, float] = ("", 0.0)  # the last decision's device and time
        self._arrivals = count(1)
        self._served = count(1)

    def __len__(self) -> int:
        """How many jobs wait, ready or not."""
        return len(self._entries)

    def add(self, waiting: Waiting, *, front: bool = False) -> None:
        """Let a job wait; it gets no turn before `make_ready`. Raises Busy when the queue is full.

        `front` is for a job that was accepted before and comes back, after a worker's death or a
        restart: it is never refused, and goes before its key's other jobs, oldest first. A key that
        has nothing waiting finds a place also when others have filled the queue.
        """
        if waiting.job_id in self._entries or waiting.job_id in self._running:
            raise ValueError(f"job {waiting.job_id} is already waiting or running")
        if not front and len(self) >= self._max_queued and self.waiting_of(waiting.key):
            raise Busy(f"All {self._max_queued} places in the queue are taken. Try again in a few seconds.")
        entry = _Entry(waiting, self._place(waiting, front=front))
        key = self._keys.setdefault(waiting.key, _Key(number=len(self._keys)))
        insort(key.waiting, entry, key=_place_of)
        self._rounds.change(len(key.waiting), 1)
        self._entries[waiting.job_id] = entry

    def make_ready(self, job_id: str) -> None:
        """The job's photo is there. Ignored for a job that waits no longer."""
        entry = self._entries.get(job_id)
        if entry is None or entry.ready:
            return
        key = self._keys[entry.waiting.key]
        with self._moving(key):
            entry.ready = True
            insort(key.ready, entry, key=_place_of)

    def first(self) -> Waiting | None:
        """The ready job whose turn it is, on a device that prefers no shape. It stays where it is."""
        return self._turns[0].ready[0].waiting if self._turns else None

    def next_job(self, device: str, now: float) -> Waiting | None:
        """The ready job with the best claim on this device, or None. It leaves the queue and runs."""
        self._asked = (device, now)
        entry = self._best()
        if entry is None:
            return None
        key = self._keys[entry.waiting.key]
        for passed in key.ready[: _index_of(entry, key.ready)]:
            passed.let_pass(now)
        with self._moving(key):
            self._take_out(entry, key)
            key.running += 1
            key.served = next(self._served)
        self._running[entry.waiting.job_id] = key
        self._shapes[device] = entry.waiting.shape
        return entry.waiting

    def prefer(self, device: str, shape: Shape | None) -> None:
        """The last job of this device is of that shape, whatever `next_job` gave it; None: it has none."""
        if shape is None:
            self._shapes.pop(device, None)
        else:
            self._shapes[device] = shape

    def remove(self, job_id: str) -> bool:
        """Take a waiting job out of the queue; False if it does not wait."""
        entry = self._entries.get(job_id)
        if entry is None:
            return False
        key = self._keys[entry.waiting.key]
        with self._moving(key):
            self._take_out(entry, key)
        return True

    def ended(self, job_id: str) -> None:
        """A job that `next_job` gave out is over, or will come back. Ignored for any other."""
        key = self._running.pop(job_id, None)
        if key is not None:
            with self._moving(key):
                key.running -= 1

    def position(self, job_id: str) -> int | None:
        """How many jobs will probably start before this one; None if it does not wait.

        Keys take turns. Before the job at index i of its key lie i full rounds, in each of which every
        key that has so many jobs starts one, and those who come before its key in its own round. 0
        is the job that the device asked last would get.
        """
        entry = self._entries.get(job_id)
        if entry is None:
            return None
        best = self._best()
        if entry is best:
            return 0
        key = self._keys[entry.waiting.key]
        index = _index_of(entry, key.waiting)
        if best is not None and best.waiting.key == entry.waiting.key and best.place > entry.place:
            index += 1  # it is about to be overtaken
        before = self._rounds.first(index)
        others_in_round = self._rounds.first(index + 1) - before - 1
        ahead = before + min(bisect_left(self._turns, key.claim, key=_claim_of), others_in_round)
        return ahead if best is None else max(1, ahead)

    def waiting_of(self, key: str) -> int:
        return len(self._keys[key].waiting) if key in self._keys else 0

    def _place(self, waiting: Waiting, *, front: bool) -> Place:
        arrival = next(self._arrivals)
        if waiting.alone or front:
            return (_ALONE if waiting.alone else _FRONT, waiting.submitted_at, arrival)
        return (_ORDINARY, 0.0, arrival)

    def _best(self) -> _Entry | None:
        if not self._turns:
            return None
        device, now = self._asked
        return _choose(self._turns[0].ready[:LOOK_AHEAD], self._shapes.get(device), now)

    def _take_out(self, entry: _Entry, key: _Key) -> None:
        self._rounds.change(len(key.waiting), -1)
        del key.waiting[_index_of(entry, key.waiting)]
        if entry.ready:
            del key.ready[_index_of(entry, key.ready)]
        del self._entries[entry.waiting.job_id]

    @contextmanager
    def _moving(self, key: _Key) -> Iterator[None]:
        """Around every change of what a key's claim depends on: it finds its new turn afterwards."""
        if key.ready:
            del self._turns[bisect_left(self._turns, key.claim, key=_claim_of)]
        yield
        if key.ready:
            insort(self._turns, key, key=_claim_of)


def _choose(first_few: Sequence[_Entry], shape: Shape | None, now: float) -> _Entry:
    """The first job of that shape, unless it would overtake one that has been overtaken enough."""
    for entry in first_few:
        if entry.waiting.shape == shape:
            return entry
        if not entry.may_be_overtaken(now):
            break
    return first_few[0]


def _index_of(entry: _Entry, line: list[_Entry]) -> int:
    place: Any = entry.place
    return bisect_left(line, place, key=_place_of)


class _Rounds:
    """How many keys have at least i waiting jobs, for i from 1, and the sums over the first of them.

    A Fenwick tree: a change and a sum cost the logarithm of the longest line.
    """

    def __init__(self) -> None:
        self._tree = [0]

    def change(self, index: int, by: int) -> None:
        while len(self._tree) <= index:
            self._grow()
        while index < len(self._tree):
            self._tree[index] += by
            index += index & -index

    def first(self, rounds: int) -> int:
        """Jobs in the first so many rounds."""
        index, total = min(rounds, len(self._tree) - 1), 0
        while index > 0:
            total += self._tree[index]
            index -= index & -index
        return total

    def _grow(self) -> None:
        index = len(self._tree)
        self._tree.append(self.first(index - 1) - self.first(index - (index & -index)))
