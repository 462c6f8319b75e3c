"""How far the jobs of other servers are: steps, which no row has.

Each server tells now and then which steps its jobs have done, and remembers what others tell. What is
missed is told again with the next step, so nobody waits for it. Lives on the event loop. Knows no
database, and nothing of a job but its id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REMEMBERED = 4096  # jobs
TOLD_AT_ONCE = 100  # jobs; PostgreSQL takes 8000 bytes in one notice


@dataclass(frozen=True, slots=True)
class Progress:
    step: int  # denoising steps done
    seconds_left: float | None = None  # for the steps that are left


class ProgressElsewhere:
    def __init__(self) -> None:
        self._of: OrderedDict[str, Progress] = OrderedDict()  # the longest unheard of first

    def hear(self, told: str) -> list[str]:
        """What another server has told. The jobs it is about; none, if it speaks as a later version may."""
        try:
            heard = dict(_read(told))
        except ValueError:
            return []
        for job_id, progress in heard.items():
            self._of[job_id] = progress
            self._of.move_to_end(job_id)
        while len(self._of) > REMEMBERED:
            self._of.popitem(last=False)
        return list(heard)

    def forget(self, job_id: str) -> None:
        """It has begun anew, or ended."""
        self._of.pop(job_id, None)

    def of(self, job_id: str) -> Progress | None:
        return self._of.get(job_id)


class OwnProgress:
    """What this server's jobs have done since it was told last."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # step, by job

    def news(self, jobs: Mapping[str, Progress]) -> str:
        """In the form that is told; "" where there is nothing new."""
        new = [(job, progress) for job, progress in jobs.items() if self._told.get(job) != progress.step]
        told = dict(new[:TOLD_AT_ONCE])
        self._told = {job: step for job, step in self._told.items() if job in jobs}
        self._told |= {job: progress.step for job, progress in told.items()}
        return " ".join(_written(told.items()))


def _written(told: Iterable[tuple[str, Progress]]) -> Iterable[str]:
    for job_id, progress in told:
        left = "" if progress.seconds_left is None else f"{progress.seconds_left:.1f}"
        yield f"{job_id}:{progress.step}:{left}"


def _read(told: str) -> Iterable[tuple[str, Progress]]:
    for item in told.split():
        job_id, step, left = item.split(":")
        yield job_id, Progress(int(step), float(left) if left else None)
