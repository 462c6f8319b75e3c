"""The numbers of a report: how alike the pictures are, over all and by face, prompt and grid value.

Means, medians and minima are of the pictures that show a face; how many show none stands beside them,
for a mean without it would praise pictures that hide the person. Plain JSON in the end. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from server.evaluation.plan import Plan
from server.evaluation.results import Result

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """What an engine says about the photos before it paints."""

    left_out: Mapping[str, str] = field(default_factory=dict)  # name -> why
    cosines: Sequence[tuple[str, str, float]] = ()  # of every two photos

    def as_json(self) -> dict[str, Any]:
        return {"left_out": dict(self.left_out), "cosines": [list(pair) for pair in self.cosines]}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> PhotoFacts:
        return cls(facts["left_out"], [(one, other, cosine) for one, other, cosine in facts["cosines"]])

    def nearest(self, name: str) -> tuple[str, float] | None:
        """The other photo that is most like this one, and the cosine."""
        others = [
            (other if one == name else one, cosine)
            for one, other, cosine in self.cosines
            if name in (one, other)
        ]
        return max(others, key=lambda pair: pair[1], default=None)


@dataclass(frozen=True, slots=True)
class About:
    """Where the pictures come from."""

    program: str  # its version
    profile: str
    notice: str  # what must be said about pictures of this profile
    settings: Mapping[str, Any]  # the other ones that change pictures


def statistics(results: Collection[Result]) -> dict[str, Any]:
    """Of these pictures; the numbers are None where no picture shows a face."""
    cosines = [result.cosine for result in results if result.cosine is not None]
    counts = {"pictures": len(results), "without_face": len(results) - len(cosines)}
    numbers: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "median": median, "min": min}
    return counts | {
        name: round(number(cosines), _DIGITS) if cosines else None for name, number in numbers.items()
    }


def summary_of(plan: Plan, facts: PhotoFacts, results: Collection[Result], about: About) -> dict[str, Any]:
    total = sum(1 for _ in plan.cells(facts.left_out))
    return {
        "program": about.program,
        "profile": about.profile,
        "notice": about.notice,
        "planned": total,
        "painted": len(results),
        "complete": len(results) == total,
        "seconds_per_picture": round(fmean(r.seconds for r in results), 3) if results else None,
        "cosine": statistics(results),
        "by_grid": {name: _by_value(plan, name, results) for name in plan.grid},
        "by_point": _by_point(plan, results) if len(plan.grid) > 1 else [],
        "by_face": _by_face(plan, facts, results),
        "by_prompt": [
            {"prompt": text, **statistics([r for r in results if r.cell.prompt == number])}
            for number, text in enumerate(plan.prompts, 1)
        ],
        "left_out": left_out(plan, facts),
        "photo_to_photo": [{"one": one, "other": b, "cosine": cosine} for one, b, cosine in facts.cosines],
    }


def left_out(plan: Plan, facts: PhotoFacts) -> dict[str, str]:
    """Photos that nothing is painted of, and why."""
    return {photo.name: photo.problem for photo in plan.photos if photo.problem} | dict(facts.left_out)


def _by_value(plan: Plan, name: str, results: Collection[Result]) -> list[dict[str, Any]]:
    def with_value(value: Any) -> list[Result]:
        return [r for r in results if plan.points[r.cell.point - 1][name] == value]

    return [{"value": value, **statistics(with_value(value))} for value in plan.grid[name]]


def _by_point(plan: Plan, results: Collection[Result]) -> list[dict[str, Any]]:
    return [
        {"point": dict(point), **statistics([r for r in results if r.cell.point == number])}
        for number, point in enumerate(plan.points, 1)
    ]


def _by_face(plan: Plan, facts: PhotoFacts, results: Collection[Result]) -> list[dict[str, Any]]:
    rows = []
    for photo in plan.photos:
        if photo.name in left_out(plan, facts):
            continue
        nearest = facts.nearest(photo.name)
        of_photo = statistics([r for r in results if r.cell.photo == photo])
        other = {"photo": nearest[0], "cosine": nearest[1]} if nearest else None
        rows.append({"face": photo.name, **of_photo, "nearest_other": other})
    return rows
