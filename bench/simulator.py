"""Calls that arrive, and devices that paint them: the server's own queue on a clock that costs nothing.

What decides whose turn it is, and which device gets it, is the real code (server/jobs/scheduler.py and
server/jobs/dispatcher.py), with all it does: fairness between keys, jobs of one shape one after the other,
a job prepared ahead beside each busy device, which an idle one takes over. Made up are the arrivals and the
times that a job and its preparation take. Left out are photos that come late, deadlines, callers who leave,
and faults: a simulated job is ready when it arrives.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from pulid.engine import GenerationRequest
from pulid.errors import Busy
from server.jobs.dispatcher import Dispatcher
from server.jobs.files import OutputOptions
from server.jobs.job import JobRecord
from server.jobs.live import LiveJob
from server.jobs.messages import Admit, Prepare, ToWorker
from server.jobs.scheduler import Scheduler

WARM_UP = 0.1  # share of the jobs that find the queue emptier than it will be, and are not counted
REQUEST, OUTPUT = GenerationRequest(prompt="simulated", seed=0), OutputOptions()


@dataclass(frozen=True, slots=True)
class Kind:
    """What callers ask for: so many of all calls, of this size, for this long."""

    share: float
    width: int
    height: int
    seconds: float  # that a device works on it


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # seconds
    key: str  # whose API key
    width: int
    height: int
    seconds: float


@dataclass(slots=True)
class Outcome:
    """Of the jobs after the warm-up, in the order in which they were begun."""

    order: list[str] = field(default_factory=list)  # their numbers, by arrival
    waits: list[float] = field(default_factory=list)  # seconds from arrival to the first step
    waits_by_key: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0  # the queue was full
    offered: int = 0
    busy_s: float = 0.0  # of all devices
    until_s: float = 0.0  # when the last job of all was painted

    @property
    def mean(self) -> float:
        return sum(self.waits) / len(self.waits)

    def quantile(self, share: float) -> float:
        return sorted(self.waits)[min(len(self.waits) - 1, int(share * len(self.waits)))]


def poisson(
    per_second: float,
    kinds: Sequence[Kind],
    jobs: int,
    seed: int,
    *,
    keys: int = 1,
    spread: bool = False,
) -> Iterator[Arrival]:
    """Callers who know nothing of each other. With `spread` the seconds of a kind are its mean, and
    exponentially distributed, as the closed forms for a queue would like them."""
    draw = random.Random(seed)  # noqa: S311
    shares = [kind.share for kind in kinds]
    at = 0.0
    for _ in range(jobs):
        at += draw.expovariate(per_second)
        (kind,) = draw.choices(kinds, shares)
        seconds = draw.expovariate(1 / kind.seconds) if spread else kind.seconds
        yield Arrival(at, f"key{draw.randrange(keys)}", kind.width, kind.height, seconds)


def simulate(
    arrivals: Iterable[Arrival], devices: int, *, max_queued: int = 10_000, prepare_s: float = 0.0
) -> Outcome:
    """Every arrival, until the last one is painted. Preparing a job takes `prepare_s`, before it or ahead."""
    return _Run(devices, max_queued, prepare_s).over(list(arrivals))


def one_line(arrivals: Iterable[Arrival], devices: int) -> Outcome:
    """What waiting could be at best, first come, first served: each job to the device that is free first."""
    free_at = [0.0] * devices
    listed = list(arrivals)
    outcome = Outcome()
    for number, arrival in enumerate(listed):
        begin = max(arrival.at, heapq.heappop(free_at))
        heapq.heappush(free_at, begin + arrival.seconds)
        outcome.busy_s += arrival.seconds
        outcome.until_s = max(outcome.until_s, begin + arrival.seconds)
        if number >= int(WARM_UP * len(listed)):
            outcome.order.append(str(number))
            outcome.waits.append(begin - arrival.at)
    return outcome


class _Run:
    def __init__(self, devices: int, max_queued: int, prepare_s: float) -> None:
        self._now = 0.0
        self._prepare_s = prepare_s
        self._prepared_at: dict[str, float] = {}  # of live jobs, once a device prepares them
        self._order = count()
        self._ends: list[tuple[float, int, LiveJob]] = []  # a heap
        self._live: dict[str, LiveJob] = {}
        self._asked: dict[str, Arrival] = {}  # of live jobs
        self._counted: set[str] = set()
        self._outcome = Outcome()
        names = tuple(f"cuda:{number}" for number in range(devices))
        self._dispatcher = Dispatcher(
            devices=names,
            scheduler=Scheduler(max_queued),
            live=self._live,
            send=self._sent,
            photo_paths=lambda job_id, photos: (),
            now=lambda: self._now,
        )
        for name in names:
            self._dispatcher.device_ready(name)

    def over(self, arrivals: Sequence[Arrival]) -> Outcome:
        first_counted = int(WARM_UP * len(arrivals))
        for number, arrival in enumerate(arrivals):
            self._end_until(arrival.at)
            self._now = arrival.at
            self._arrive(str(number), arrival, is_counted=number >= first_counted)
        self._end_until(float("inf"))
        self._outcome.until_s = self._now
        return self._outcome

    def _arrive(self, job_id: str, arrival: Arrival, *, is_counted: bool) -> None:
        record = JobRecord(
            id=job_id,
            key=arrival.key,
            api="v2",
            submitted_at=arrival.at,
            deadline_at=float("inf"),
            width=arrival.width,
            height=arrival.height,
            max_sequence_length=128,
            num_outputs=1,
            media_id=job_id,
        )
        job = self._live[job_id] = LiveJob(record, REQUEST, OUTPUT)
        self._asked[job_id] = arrival
        self._outcome.offered += is_counted
        if is_counted:
            self._counted.add(job_id)
        try:
            self._dispatcher.enqueue(job)
        except Busy:
            self._outcome.refused += is_counted
            self._forget(job_id)
        else:
            self._dispatcher.make_ready(job)

    def _sent(self, device: str, message: ToWorker) -> None:
        """What a worker would hear. It begins what it may begin as soon as that is prepared."""
        if isinstance(message, Prepare):
            self._prepared_at[message.job_id] = self._now + self._prepare_s
        if isinstance(message, Admit) or (isinstance(message, Prepare) and message.is_admitted):
            self._begin(self._live[message.job_id])

    def _begin(self, job: LiveJob) -> None:
        asked = self._asked[job.id]
        begins_at = max(self._now, self._prepared_at[job.id])
        if job.id in self._counted:
            wait = begins_at - asked.at
            self._outcome.order.append(job.id)
            self._outcome.waits.append(wait)
            self._outcome.waits_by_key.setdefault(asked.key, []).append(wait)
        self._outcome.busy_s += asked.seconds
        heapq.heappush(self._ends, (begins_at + asked.seconds, next(self._order), job))

    def _end_until(self, moment: float) -> None:
        while self._ends and self._ends[0][0] <= moment:
            self._now, _, job = heapq.heappop(self._ends)
            self._dispatcher.denoised(job)
            self._dispatcher.forget(job, is_painted=True)
            self._forget(job.id)

    def _forget(self, job_id: str) -> None:
        del self._live[job_id], self._asked[job_id]
        self._prepared_at.pop(job_id, None)
        self._counted.discard(job_id)
