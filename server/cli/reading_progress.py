"""How reading large files shows itself: a bar for the file at hand on a terminal, a line for each elsewhere.

On standard error. For commands that hash what is on the disk; knows nothing of why they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from server.cli.fetch_progress import size_text

_LARGE = 1 << 30  # bytes: hashing less takes no patience


@contextmanager
def shown_reading() -> Iterator[Callable[[Path, int], None]]:
    """Gives what is to be called with a file and how many more of its bytes were read."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().read
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, *columns, console=console, transient=True) as progress:
        yield _Bars(progress).read


class _Lines:
    """For logs: that it goes on with the next large file."""

    def __init__(self) -> None:
        self._said: set[Path] = set()

    def read(self, file: Path, count: int) -> None:
        size = file.stat().st_size
        if size >= _LARGE and file not in self._said:
            self._said.add(file)
            typer.echo(f"Reading {file}, {size_text(size)}", err=True)


class _Bars:
    """For people."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._file: Path | None = None
        self._bar = TaskID(0)

    def read(self, file: Path, count: int) -> None:
        if file != self._file:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._file = file
            self._bar = self._progress.add_task(file.name, total=file.stat().st_size)
        self._progress.update(self._bar, advance=count)
