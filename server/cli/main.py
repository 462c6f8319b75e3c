"""The command table, nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

import server
from server.cli import bench, keys, weights
from server.cli.doctor import doctor
from server.cli.evaluate import evaluate
from server.cli.generate import generate
from server.cli.serve import serve

app = typer.Typer(
    name="flux-pulid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, which may be photos
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux-pulid {server.__version__}")
        raise typer.Exit


@app.callback()
def flux_pulid(
    version: Annotated[
        bool, typer.Option("--version", help="Show it and end.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Portraits of a person from one photo and a prompt: FLUX.1-dev with PuLID."""


app.command()(serve)
app.command()(generate)
app.command()(evaluate)
app.command()(doctor)
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="weights")
app.add_typer(bench.app, name="bench")
