"""How far a command has come that writes files: one bar on a terminal, a line for each file elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def shown_writing(total: int) -> Iterator[Callable[[str, int], None]]:
    """Gives what is to be called with a file's name and how many more of its bytes are written."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().written
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}", markup=False), *columns, console=console) as progress:
        bar = progress.add_task("", total=total)
        yield lambda name, count: progress.update(bar, description=name, advance=count)


class _Lines:
    """For logs."""

    def __init__(self) -> None:
        self._said = ""

    def written(self, name: str, _count: int) -> None:
        if name != self._said:
            self._said = name
            typer.echo(f"writing  {name}", err=True)
