"""How a command ends when something is wrong: one message on standard error, no traceback.

Exit codes: 2 the input or a model file is wrong, 1 anything else, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pulid.errors import BadRequest, PulidError
from server.settings import SettingsError
from weights.errors import WeightsError

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


@contextmanager
def clean_exit() -> Iterator[None]:
    """Turn our own errors and Ctrl-C into an exit code. Anything else is a bug and shows itself."""
    try:
        yield
    except (BadRequest, SettingsError, WeightsError) as exc:
        typer.echo(f"Error: {exc}", err=True)
        raise typer.Exit(BAD_INPUT) from exc
    except PulidError as exc:
        typer.echo(f"Error: {exc}", err=True)
        raise typer.Exit(FAILED) from exc
    except KeyboardInterrupt as exc:
        typer.echo("Stopped.", err=True)
        raise typer.Exit(INTERRUPTED) from exc
