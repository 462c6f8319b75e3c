"""What `flux-pulid weights list`, `verify` and `fetch --dry-run` print: as tables and as data for programs.

Reads a weights folder and changes nothing in it. Does not know flags and settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.fetch_progress import licence_lines, size_text
from server.cli.weights_place import Place, readers_of
from weights import lock
from weights.errors import FetchFailed
from weights.lock import LockEntry
from weights.manifest import Checkpoint
from weights.plan import states
from weights.verify import FETCH, Held, Problem, held_of

if TYPE_CHECKING:
    from weights.download import Download
    from weights.plan import Item

_WIDTH = 180  # of a table that no terminal shows
_WORST_FIRST = ("changed", "unchecked", "accepted", "pinned", "verified")
_USABLE = {"accepted", "pinned", "verified"}


def described(checkpoint: Checkpoint, place: Place, known: Mapping[str, LockEntry]) -> dict[str, Any]:
    standing = states(checkpoint, place.home, known)
    sources = {file.path: file.source.address for file in checkpoint.files}
    sizes = {file.path: file.size for file in checkpoint.files}
    files = [
        {
            "path": path,
            "state": state,
            "size": known[path].size if path in known else sizes.get(path),
            "source": sources.get(path),
        }
        for path, state in standing.items()
    ]
    licence = checkpoint.licence
    return {
        "name": checkpoint.name,
        "role": checkpoint.role,
        "needed": checkpoint in place.wanted,
        "profiles": checkpoint.profiles,
        "read_by": readers_of(checkpoint),
        "path": checkpoint.path,
        "state": _summary([str(state) for state in standing.values()]),
        "size": sum(file["size"] or 0 for file in files),
        "licence": {
            "name": licence.name,
            "commercial_use": licence.commercial_use,
            "gated": checkpoint.is_gated,
            "summary": licence.summary,
            "url": licence.url,
        },
        "files": files,
    }


def _summary(standing: Sequence[str]) -> str:
    """Of several files the state that matters most."""
    if "missing" in standing:
        return "missing" if set(standing) == {"missing"} else "incomplete"
    return next(state for state in _WORST_FIRST if state in standing)


def print_table(rows: Sequence[Mapping[str, Any]], place: Place) -> None:
    table = Table("", "name", "for", "size", "state", box=None, pad_edge=False)
    for title in ("commercial use", "licence", "where"):
        table.add_column(title, overflow="fold")
    for row in rows:
        mark = "*" if row["needed"] else "" if row["read_by"] else "-"
        licence = row["licence"]["name"] + (", gated" if row["licence"]["gated"] else "")
        size = size_text(row["size"]) if row["size"] else "unknown"
        cells = (mark, row["name"], row["role"].replace("_", " "), size, row["state"])
        table.add_row(*cells, row["licence"]["commercial_use"], Text(licence), row["path"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    typer.echo(_totals([row for row in rows if row["needed"]], place))
    if not all(row["read_by"] for row in rows):
        typer.echo("- is for a profile that does not exist yet: no profile of this version reads it.")


def _totals(needed: Sequence[Mapping[str, Any]], place: Place) -> str:
    all_of_it = sum(row["size"] for row in needed)
    there = sum(row["size"] for row in needed if row["state"] in _USABLE)
    return (
        f"* is what the profile {place.profile} needs: {size_text(all_of_it)}, of which {size_text(there)} "
        f"are in {place.home}"
    )


def print_plan(items: Sequence[Item], place: Place) -> None:
    from weights import download

    try:
        downloads: list[Download] = download.look_up(items, place.home)
    except FetchFailed:
        _print_what_is_missing([item for item in items if item.state == "missing"], place)
        raise
    for found in downloads:
        rest = f", {size_text(found.size - found.have)} to go" if found.have else ""
        typer.echo(f"fetch  {size_text(found.size):>9}  {found.item.file.path}{rest}")
    for item in items:
        if item.state == "unchecked":
            typer.echo(f"check  {'':>9}  {item.file.path}")
    for line in licence_lines(dict.fromkeys(found.item.checkpoint for found in downloads)):
        typer.echo(line)
    total = sum(found.size - found.have for found in downloads)
    amount = f"{size_text(total)} would be fetched" if downloads else "Nothing would be fetched"
    typer.echo(f"{amount} to {place.home}.")
    download.require_room(downloads, place.home)


def _print_what_is_missing(items: Sequence[Item], place: Place) -> None:
    """As far as it is known without a server."""
    for item in items:
        size = "unknown" if item.file.size is None else size_text(item.file.size)
        typer.echo(f"fetch  {size:>9}  {item.file.path}")
    total = sum(item.file.size or 0 for item in items)
    typer.echo(f"About {size_text(total)} would be fetched to {place.home}.")


def judged(
    checkpoints: Sequence[Checkpoint], home: Path, problems: Sequence[Problem], *, quick: bool
) -> list[dict[str, Any]]:
    """Each file with what is known of it now."""
    known = lock.read(home)
    faulty = {problem.file for problem in problems}
    rows = []
    for checkpoint in checkpoints:
        for held in held_of(checkpoint, home, known):
            is_there = held.path.is_file()
            is_wrong = bool({held.path, held.path.parent} & faulty)
            result = "wrong" if is_wrong else _right(held, quick=quick)
            rows.append(
                {
                    "checkpoint": checkpoint.name,
                    "file": str(held.path.relative_to(home)),
                    "size": held.path.stat().st_size if is_there else None,
                    "result": result if is_there else "missing",
                }
            )
    return rows


def _right(held: Held, *, quick: bool) -> str:
    """How much is known of a file in which nothing wrong was found."""
    if quick:
        return "whole"
    if held.sha256 is None:
        return "whole, hash unknown"
    if held.known is not None and held.sha256 == held.known.sha256:
        return "verified"
    return "accepted" if held.is_accepted else "pinned"


def as_data(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [
        {"file": str(problem.file), "what": problem.what, "remedy": problem.remedy} for problem in problems
    ]


def print_judgement(rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem], place: Place) -> None:
    table = Table("checkpoint", "file", "size", "result", box=None, pad_edge=False)
    for row in rows:
        size = "" if row["size"] is None else size_text(row["size"])
        table.add_row(row["checkpoint"], Text(row["file"]), size, row["result"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    for problem in problems:
        if problem.remedy != FETCH:
            typer.echo(str(problem))
    if missing := [problem.name_in(place.home) for problem in problems if problem.remedy == FETCH]:
        typer.echo(f"Missing. {FETCH}")
        for name in missing:
            typer.echo(f"  {name}")
    typer.echo(f"{len(problems) or 'No'} {'problem' if len(problems) == 1 else 'problems'} in {place.home}.")
