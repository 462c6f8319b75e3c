"""How far the pictures of one report are from those of another: same faces, prompts, seeds and parameters.

For each pair PSNR, LPIPS where there is a network for it, and by how much the identity cosine changed. Both
reports lie on the disk; nothing is painted. Knows no engine and no markup.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from PIL import Image

from pulid.engine import RgbImage
from server.evaluation.inputs import wrong
from server.evaluation.plan import Plan
from server.evaluation.results import Result, columns_of, results_of, row_of

Distance = Callable[[RgbImage, RgbImage], float]

_DIGITS = 6
_MEASURES = ("psnr_db", "lpips", "cosine_change")


@dataclass(frozen=True, slots=True)
class OtherReport:
    """A complete report of the same pictures, painted otherwise."""

    root: Path
    profile: str
    results: Mapping[str, Result]  # by the ids of their cells


@dataclass(frozen=True, slots=True)
class Pair:
    ours: Result
    theirs: Result
    psnr_db: float | None  # None: the pictures are equal
    lpips: float | None  # None: nobody brought its weights

    @property
    def cosine_change(self) -> float | None:
        """None where either picture shows no face."""
        if self.ours.cosine is None or self.theirs.cosine is None:
            return None
        return round(self.ours.cosine - self.theirs.cosine, _DIGITS)


def open_other(root: Path, plan: Plan) -> OtherReport:
    """Raises InvalidParameters for what is no complete report of the same pictures without loss."""
    if plan.options.format != "png":
        raise wrong("compare_with", "--compare-with needs pictures without loss: leave --output-format out.")
    try:
        manifest = json.loads((root / "evaluation.json").read_text("utf-8"))
        summary = json.loads((root / "summary.json").read_text("utf-8"))
        rows = list(csv.DictReader(io.StringIO((root / "results.csv").read_text("utf-8"))))
        is_complete, profile = summary["complete"], str(summary["profile"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise wrong("compare_with", f"--compare-with {root} holds no report of this command.") from exc
    wanted = json.loads(json.dumps(plan.manifest()))
    if differing := [name for name in wanted if manifest.get(name) != wanted[name]]:
        raise wrong(
            "compare_with",
            f"--compare-with {root} is a report of other pictures; different: {', '.join(differing)}.",
        )
    if not is_complete:
        raise wrong(
            "compare_with",
            f"--compare-with {root} is not complete. The command that painted it goes on where it stopped.",
        )
    return OtherReport(root, profile, results_of(plan, rows))


def pairs_of(
    root: Path, results: Mapping[str, Result], other: OtherReport, distance: Distance | None
) -> list[Pair]:
    """Of the cells that both reports have. Raises InvalidParameters for a picture that cannot be read."""
    return [_pair(root, result, other, distance) for cell, result in results.items() if cell in other.results]


def _pair(root: Path, ours: Result, other: OtherReport, distance: Distance | None) -> Pair:
    theirs = other.results[ours.cell.id]
    one, two = _pixels(root / ours.picture), _pixels(other.root / theirs.picture)
    if one.shape != two.shape:
        raise wrong("compare_with", f"{other.root / theirs.picture} has another size than {ours.picture}.")
    lpips = None if distance is None else round(distance(one, two), _DIGITS)
    return Pair(ours, theirs, psnr(one, two), lpips)


def _pixels(file: Path) -> RgbImage:
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as exc:
        raise wrong("compare_with", f"The picture {file} cannot be read.") from exc


def psnr(one: RgbImage, other: RgbImage) -> float | None:
    """In dB, of pictures in 8 bits; None for equal ones."""
    square = float(np.mean((one.astype(np.float64) - other) ** 2))
    return None if square == 0 else round(10 * math.log10(255**2 / square), 3)


# ---- what is written ----


def comparison_of(plan: Plan, profile: str, other: OtherReport, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Plain JSON."""
    return {
        "profile": profile,
        "compared_with": {"report": str(other.root), "profile": other.profile},
        **_statistics(pairs),
        "by_point": [
            {"point": dict(point), **_statistics([pair for pair in pairs if pair.ours.cell.point == number])}
            for number, point in enumerate(plan.points, 1)
        ],
    }


def table_of(plan: Plan, pairs: Collection[Pair]) -> str:
    """CSV: a line for each pair. Empty: equal pictures, no weights for LPIPS, or a picture without a face."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*columns_of(plan)[:-2], "other_picture", *_MEASURES])
    for pair in pairs:
        cell = row_of(plan, pair.ours)[:-2]  # without cosine and seconds
        figures = [getattr(pair, name) for name in _MEASURES]
        blank = ["" if figure is None else figure for figure in figures]
        lines.writerow([*cell, pair.theirs.picture, *blank])
    return text.getvalue()


def _statistics(pairs: Collection[Pair]) -> dict[str, Any]:
    worst: Mapping[str, Callable[[list[float]], float]] = {"lpips": max}
    counts = {"pairs": len(pairs), "equal": sum(pair.psnr_db is None for pair in pairs)}
    return counts | {name: _figures(pairs, name, worst.get(name, min)) for name in _MEASURES}


def _figures(
    pairs: Collection[Pair], name: str, worst: Callable[[list[float]], float]
) -> dict[str, float] | None:
    values = [value for pair in pairs if (value := getattr(pair, name)) is not None]
    if not values:
        return None
    numbers = {"mean": fmean(values), "median": median(values), "worst": worst(values)}
    return {key: round(value, _DIGITS) for key, value in numbers.items()}
