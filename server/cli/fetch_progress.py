"""How a fetch shows itself: bars on a terminal, a line now and then elsewhere. All on standard error.

Begins with what is to come: how much, and under which licences, each said once. Called from the
threads that fetch; knows nothing of how they do it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from threading import Lock
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from weights.manifest import Checkpoint, WeightFile

if TYPE_CHECKING:
    from weights.download import Download
    from weights.lock import LockEntry

_EVERY_S = 30.0  # between two lines where there are no bars
_VOUCHED = {
    "shipped": "verified",
    "pinned": "pinned: its hash was not known before",
    "operator": "accepted, as you said",
}


@contextmanager
def shown_progress() -> Iterator[Lines | Bars]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}", markup=False), *columns, console=console) as progress:
        yield Bars(progress)


class Lines:
    """For logs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._total = self._have = 0
        self._said = time.monotonic()

    def planned(self, downloads: Sequence[Download]) -> None:
        self._total = sum(download.size for download in downloads)
        self._have = sum(download.have for download in downloads)
        for line in announcement(downloads):
            typer.echo(line, err=True)

    def received(self, file: WeightFile, count: int) -> None:
        with self._lock:
            self._have += count
            if time.monotonic() - self._said >= _EVERY_S:
                self._said = time.monotonic()
                typer.echo(f"{size_text(self._have)} of {size_text(self._total)}", err=True)

    def checking(self, file: WeightFile) -> None:
        """Not worth a line."""

    def done(self, file: WeightFile, entry: LockEntry) -> None:
        typer.echo(done_text(file, entry), err=True)


class Bars:
    """For people: one bar for each file that is on its way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[WeightFile, TaskID] = {}

    def planned(self, downloads: Sequence[Download]) -> None:
        for line in announcement(downloads):
            self._progress.print(line, markup=False, highlight=False)
        for download in downloads:
            file = download.item.file
            self._bars[file] = self._progress.add_task(
                name_of(file), total=download.size, completed=download.have, visible=download.have > 0
            )

    def received(self, file: WeightFile, count: int) -> None:
        self._progress.update(self._bars[file], advance=count, visible=True)

    def checking(self, file: WeightFile) -> None:
        if file in self._bars:
            self._progress.update(self._bars[file], description=f"{name_of(file)} (checking)")

    def done(self, file: WeightFile, entry: LockEntry) -> None:
        if file in self._bars:
            self._progress.remove_task(self._bars[file])
        self._progress.print(done_text(file, entry), markup=False, highlight=False)


def announcement(downloads: Sequence[Download]) -> list[str]:
    """What is to come, before its first byte."""
    if not downloads:
        return []
    rest = sum(download.size - download.have for download in downloads)
    on = " to go" if any(download.have for download in downloads) else ""
    count = "1 file" if len(downloads) == 1 else f"{len(downloads)} files"
    checkpoints = {download.item.checkpoint.name: download.item.checkpoint for download in downloads}
    return [f"Fetching {count}, {size_text(rest)}{on}.", *licence_lines(checkpoints.values())]


def licence_lines(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """Of those whose licences are narrower than this program's own, each licence once."""
    names: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for checkpoint in checkpoints:
        licence = checkpoint.licence
        if licence.commercial_use != "yes":
            names.setdefault(licence.name, []).append(checkpoint.name)
            texts[licence.name] = f"{licence.summary} {licence.url}"
    return [f"Licence of {', '.join(names[name])}: {name}. {texts[name]}" for name in names]


def name_of(file: WeightFile) -> str:
    """Short, so that there is room for a bar."""
    return PurePath(file.path).name


def done_text(file: WeightFile, entry: LockEntry) -> str:
    return f"{file.path}: {size_text(entry.size)}, {_VOUCHED[entry.trust]}"


def size_text(count: int) -> str:
    """Decimal units, as disks and downloads are sold."""
    for unit, digits in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= digits:
            return f"{count / digits:.1f} {unit}"
    return f"{count} bytes"
