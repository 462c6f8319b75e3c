"""The report as one HTML page: no script, nothing from the network, pictures by relative links.

All text of others (prompts, file names, messages) passes `html.escape`. The numbers come from the
summary and are only rounded here. Knows no files and no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import chain
from typing import Any

from server.evaluation.inputs import Photo
from server.evaluation.plan import Cell, Plan
from server.evaluation.results import Result
from server.evaluation.summary import About

_MATRIX_UP_TO = 12  # photos; a larger table of all pairs is for summary.json
_SHORT = 90  # characters of a prompt in a table

_READ_ME = (
    "Each figure is the cosine of two ArcFace vectors, of the face in the photo and of the nearest face in "
    "the picture: 1 is the same face, 0 no relation. It says how alike the two are to this recogniser, not "
    "how good the picture is. Compare it with the cosines between your photos of different people, and with "
    "pictures painted at id_weight 0."
)


def thumbnail_of(photo: Photo) -> str:
    """The small copy of a photo, relative to the report."""
    return f"photos/f{photo.number:02}.jpg"


def page(
    plan: Plan,
    about: About,
    summary: Mapping[str, Any],
    results: Mapping[str, Result],
    comparison: Mapping[str, Any] | None = None,
) -> str:
    """`summary` as `summary_of` makes it; `results` by the ids of their cells; `comparison_of`, if any."""
    styles = ("web/colours.css", "evaluation/report.css")
    style = "\n".join(files("server").joinpath(name).read_text("utf-8") for name in styles)
    painted = [photo for photo in plan.photos if photo.name not in summary["left_out"]]
    prompts = (_prompt(plan, painted, number, results) for number in range(1, len(plan.prompts) + 1))
    body = [
        _head(plan, painted, summary),
        _numbers(plan, painted, summary),
        *([] if comparison is None else [_comparison(comparison)]),
        _photos(painted, summary),
        *prompts,
        _settings(plan, about),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Likeness report</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


# ---- the top ----


def _head(plan: Plan, painted: Sequence[Photo], summary: Mapping[str, Any]) -> str:
    sizes = (
        _counted(len(painted), "face"),
        _counted(len(plan.prompts), "prompt"),
        _counted(len(plan.wires), "point of the grid", "points of the grid"),
        _counted(len(plan.seeds), "seed"),
    )
    lead = f"{' x '.join(sizes)}, painted with the profile {escape(summary['profile'])}."
    banners = []
    if summary["notice"]:
        said = escape(summary["notice"])
        banners.append(f"<strong>These pictures say nothing about likeness.</strong> Note of the {said}.")
    if not summary["complete"]:
        banners.append(
            f"{summary['painted']} of {summary['planned']} pictures are painted. "
            "The same command goes on where it stopped."
        )
    lines = [f'<p class="banner">{banner}</p>' for banner in banners]
    return "\n".join(["<h1>Likeness report</h1>", f'<p class="lead">{lead}</p>', *lines])


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _numbers(plan: Plan, painted: Sequence[Photo], summary: Mapping[str, Any]) -> str:
    over_all = summary["cosine"]
    seconds = summary["seconds_per_picture"]
    tiles = {
        "mean cosine": _figure(over_all["mean"]),
        "median": _figure(over_all["median"]),
        "lowest": _figure(over_all["min"]),
        "pictures": str(over_all["pictures"]),
        "without a face": str(over_all["without_face"]),
        "seconds a picture": "-" if seconds is None else f"{seconds:.1f}",
    }
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    tables = [
        _table(f"By {name}", name, [_plain(row["value"]) for row in rows], rows)
        for name, rows in summary["by_grid"].items()
    ]
    if points := summary["by_point"]:
        labels = [_point_head(row["point"]) for row in points]
        tables.append(_table("By point of the grid", "point", labels, points, kind="points"))
    tables.append(_faces(painted, summary["by_face"]))
    prompts = summary["by_prompt"]
    labels = [
        f'<a href="#prompt-{number}">{number}</a> {escape(_short(row["prompt"]))}'
        for number, row in enumerate(prompts, 1)
    ]
    tables.append(_table("By prompt", "prompt", labels, prompts, kind="prompts"))
    return (
        f'<h2>Summary</h2>\n<p class="note">{_READ_ME}</p>\n<dl class="tiles">{shown}</dl>\n'
        f'<div class="summaries">\n{"".join(tables)}</div>'
    )


def _table(
    caption: str,
    first: str,
    labels: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    more: Mapping[str, Sequence[str]] | None = None,
    kind: str = "",
) -> str:
    """Statistics, a row for each label. `labels` and the columns of `more` are markup."""
    best = max((row["mean"] for row in rows if row["mean"] is not None), default=None)
    extra = more or {}
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in (first, "mean", *extra))
    heads += "".join(
        f'<th scope="col" class="number">{name}</th>' for name in ("median", "lowest", "pictures", "no face")
    )
    lines = []
    for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
        is_best = len(rows) > 1 and row["mean"] is not None and row["mean"] == best
        cells = f'<th scope="row">{label}</th><td class="wide">{_cosine(row["mean"], is_best)}</td>'
        cells += "".join(f"<td>{column[number]}</td>" for column in extra.values())
        figures = (_figure(row["median"]), _figure(row["min"]), row["pictures"], row["without_face"])
        cells += "".join(f'<td class="number">{figure}</td>' for figure in figures)
        lines.append(f"<tr>{cells}</tr>")
    return _scrolling(caption, f"<thead><tr>{heads}</tr></thead>", lines, kind)


def _faces(painted: Sequence[Photo], rows: Sequence[Mapping[str, Any]]) -> str:
    labels = [_photo_label(photo) for photo in painted]
    nearest = [_nearest(row["nearest_other"]) for row in rows]
    more = {"nearest other photo": nearest} if len(painted) > 1 else None
    return _table("By face", "face", labels, rows, more, "faces")


def _nearest(other: Mapping[str, Any] | None) -> str:
    return "-" if other is None else f"{_figure(other['cosine'])} {escape(other['photo'])}"


def _photo_label(photo: Photo) -> str:
    # The name stands beside it: said once is enough.
    return f'<img src="{thumbnail_of(photo)}" alt="" loading="lazy">{escape(photo.name)}'


def _comparison(comparison: Mapping[str, Any]) -> str:
    other, pairs = comparison["compared_with"], comparison["pairs"]
    labels = {"psnr_db": "PSNR in dB", "lpips": "LPIPS", "cosine_change": "change of the cosine"}
    heads = "".join(f'<th scope="col" class="number">{name}</th>' for name in ("mean", "median", "worst"))
    lines = []
    for name, label in labels.items():
        if figures := comparison[name]:
            cells = "".join(
                f'<td class="number">{figures[key]:.3f}</td>' for key in ("mean", "median", "worst")
            )
            lines.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    equal = f", of which {comparison['equal']} are equal and have no PSNR" if comparison["equal"] else ""
    lead = (
        f"{_counted(pairs, 'picture')}{equal}, beside those of the profile {escape(other['profile'])} in "
        f"{escape(other['report'])}. PSNR: higher is nearer. LPIPS: lower is nearer. Each pair stands in "
        "comparison.csv."
    )
    table = _scrolling("Distance", f'<thead><tr><th scope="col">measure</th>{heads}</tr></thead>', lines)
    return f'<h2>Compared with another report</h2>\n<p class="note">{lead}</p>\n{table}'


# ---- the photos ----


def _photos(painted: Sequence[Photo], summary: Mapping[str, Any]) -> str:
    parts = []
    if 1 < len(painted) <= _MATRIX_UP_TO:
        parts += [_MATRIX_NOTE, _matrix(painted, summary["photo_to_photo"])]
    if left_out := summary["left_out"]:
        items = "".join(
            f"<li><strong>{escape(name)}</strong>: {escape(why)}</li>" for name, why in left_out.items()
        )
        parts.append(
            f'<p class="note">Left out, and nothing painted of them:</p><ul class="left-out">{items}</ul>'
        )
    return "\n".join(["<h2>Photos</h2>", *parts]) if parts else ""


_MATRIX_NOTE = (
    '<p class="note">How alike the photos themselves are. Where two show different people, their cosine is '
    "what a stranger reaches; where they show one person, it is about the best a picture can reach.</p>"
)


def _matrix(painted: Sequence[Photo], pairs: Iterable[Mapping[str, Any]]) -> str:
    known = {frozenset((pair["one"], pair["other"])): pair["cosine"] for pair in pairs}
    names = [photo.name for photo in painted]
    heads = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in names)
    lines = []
    for one in names:
        figures = (_figure(known.get(frozenset((one, other)))) for other in names)
        cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
        lines.append(f'<tr><th scope="row">{escape(one)}</th>{cells}</tr>')
    return _scrolling(
        "Photo to photo", f'<thead><tr><th scope="col">photo</th>{heads}</tr></thead>', lines, "matrix"
    )


# ---- the pictures ----


def _prompt(plan: Plan, painted: Sequence[Photo], number: int, results: Mapping[str, Result]) -> str:
    heads = "".join(f'<th scope="col">{_point_head(point)}</th>' for point in plan.points)
    table = _scrolling(
        "The highest of each row is bold",
        f'<thead><tr><th scope="col">face</th>{heads}</tr></thead>',
        [_row(plan, photo, number, results) for photo in painted],
        "cells",
        label=f"Pictures of prompt {number}",
    )
    text = escape(plan.prompts[number - 1])
    return f'<h2 id="prompt-{number}">Prompt {number}</h2>\n<p class="prompt">{text}</p>\n{table}'


def _row(plan: Plan, photo: Photo, prompt: int, results: Mapping[str, Result]) -> str:
    points = range(1, len(plan.wires) + 1)
    cells = {point: [Cell(photo, prompt, point, seed) for seed in plan.seeds] for point in points}
    known = (results.get(cell.id) for cell in chain(*cells.values()))
    best = max((r.cosine for r in known if r is not None and r.cosine is not None), default=None)
    pictures = (
        "".join(_picture(plan, cell, results.get(cell.id), best) for cell in cells[point]) for point in points
    )
    columns = "".join(f'<td><div class="seeds">{figures}</div></td>' for figures in pictures)
    return f'<tr><th scope="row">{_photo_label(photo)}</th>{columns}</tr>'


def _point_head(point: Mapping[str, Any]) -> str:
    return "".join(f"<span>{escape(text)}</span>" for text in _named(point)) or "picture"


def _picture(plan: Plan, cell: Cell, result: Result | None, best: float | None) -> str:
    if result is None:
        return '<span class="waiting">not painted yet</span>'
    point = ", ".join([*_named(plan.points[cell.point - 1]), f"seed {cell.seed}"])
    alt = escape(f"Picture of {cell.photo.name}, prompt {cell.prompt}, {point}")
    source = escape(result.picture)
    seed = f'<span class="none">seed {cell.seed}</span>' if len(plan.seeds) > 1 else ""
    is_best = best is not None and result.cosine == best
    return (
        f'<figure><a href="{source}"><img src="{source}" alt="{alt}" loading="lazy"></a>'
        f"<figcaption>{_cosine(result.cosine, is_best, 'no face found')}{seed}</figcaption></figure>"
    )


# ---- the end ----


def _settings(plan: Plan, about: About) -> str:
    facts = {
        "program": f"flux-pulid-server {about.program}",
        "profile": about.profile,
        **about.settings,
        "seeds": ", ".join(map(str, plan.seeds)),
        **plan.manifest()["parameters"],
    }
    shown = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>" for name, value in facts.items()
    )
    return (
        f'<h2>Settings</h2>\n<dl class="facts">{shown}</dl>\n'
        '<p class="note">The same numbers for programs: <a href="results.csv">results.csv</a>, a line for '
        'each picture, and <a href="summary.json">summary.json</a>.</p>'
    )


# ---- pieces ----


def _scrolling(caption: str, head: str, lines: Iterable[str], kind: str = "", *, label: str = "") -> str:
    """A table in a frame of its own that a keyboard can scroll."""
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" aria-label="{escape(label or caption)}">'
        f"<table><caption>{escape(caption)}</caption>{head}"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>\n"
    )


def _cosine(value: float | None, is_best: bool, otherwise: str = "-") -> str:
    if value is None:
        return f'<span class="none">{otherwise}</span>'
    figure = f"<strong>{_figure(value)}</strong>" if is_best else _figure(value)
    bar = f'<span class="bar" style="--at:{min(max(value, 0), 1):.3f}"></span>'
    return f'<span class="cosine{" best" if is_best else ""}"><span>{figure}</span>{bar}</span>'


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _named(point: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_plain(value)}" for name, value in point.items()]


def _plain(value: object) -> str:
    """1.0 as 1."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."
