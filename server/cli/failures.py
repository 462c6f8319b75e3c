"""How a command ends when something is wrong: one message on standard error, no traceback.

Exit codes: 2 the input, the settings or a model file must be changed first, 1 anything else, so also
what trying again later may cure, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pulid.errors import BadRequest, PulidError
from server.settings import SettingsError
from weights.errors import TryLater, WeightsError

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


@contextmanager
def clean_exit() -> Iterator[None]:
    """Turn our own errors and Ctrl-C into an exit code. Anything else is a bug and shows itself."""
    try:
        yield
    except (PulidError, WeightsError) as exc:
        is_input = isinstance(exc, BadRequest | SettingsError | WeightsError)
        typer.echo(f"Error: {exc}", err=True)
        code = BAD_INPUT if is_input and not isinstance(exc, TryLater) else FAILED
        raise typer.Exit(code) from exc
    except KeyboardInterrupt as exc:
        typer.echo("Stopped.", err=True)
        raise typer.Exit(INTERRUPTED) from exc
