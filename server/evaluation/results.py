"""One painted picture of an evaluation, and its line in results.csv.

Numbers are rounded before they are written, so that a summary of what was read says the same as one of
what was just painted. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.evaluation.plan import Cell, Plan

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Result:
    cell: Cell
    picture: str  # its file, relative to the report
    cosine: float | None  # of the ArcFace vectors of photo and picture; None: the picture shows no face
    seconds: float  # from the request to the picture, without the measuring

    @classmethod
    def measured(cls, cell: Cell, picture: str, cosine: float | None, seconds: float) -> Result:
        return cls(cell, picture, None if cosine is None else round(cosine, _DIGITS), round(seconds, 3))


def columns_of(plan: Plan) -> list[str]:
    return [
        *("cell", "face", "prompt_number", "prompt", *plan.grid),
        *("seed", "picture", "cosine", "seconds"),
    ]


def row_of(plan: Plan, result: Result) -> list[object]:
    """In the order of `columns_of`. An empty cosine: the picture shows no face."""
    cell = result.cell
    point = plan.points[cell.point - 1]
    cosine = "" if result.cosine is None else result.cosine
    return [
        *(cell.id, cell.photo.name, cell.prompt, plan.prompts[cell.prompt - 1], *point.values()),
        *(cell.seed, result.picture, cosine, result.seconds),
    ]


def results_of(plan: Plan, rows: Iterable[Mapping[str, str]]) -> dict[str, Result]:
    """By the id of their cells."""
    cells = {cell.id: cell for cell in plan.cells()}
    return {row["cell"]: _result(cells[row["cell"]], row) for row in rows if row["cell"] in cells}


def _result(cell: Cell, row: Mapping[str, str]) -> Result:
    cosine = float(row["cosine"]) if row["cosine"] else None
    return Result(cell, row["picture"], cosine, float(row["seconds"]))
