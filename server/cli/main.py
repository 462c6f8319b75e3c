"""The command table, nothing else."""

from __future__ import annotations

import typer

from server.cli import keys, weights
from server.cli.doctor import doctor
from server.cli.generate import generate
from server.cli.serve import serve

app = typer.Typer(
    name="flux-pulid",
    help="Portraits of a person from one photo and a prompt: FLUX.1-dev with PuLID.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, which may be photos
)
app.command()(serve)
app.command()(generate)
app.command()(doctor)
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="weights")
