"""Command-line flags from a pydantic model: one `--name` for each field.

So a setting or a parameter is declared once, with its range and its description. The flags are
text; the model turns it into numbers and says what is wrong with it. Knows no command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from server.fields import allowed


def with_flags(
    model: type[BaseModel], *, skip: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the fields of `model` to the options of a command, which takes them as **given.

    A flag that was not used arrives as None; see `used`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        explicit = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        flags = [_flag(model, name) for name in model.model_fields if name not in skip]
        command.__signature__ = own.replace(parameters=[*explicit, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def used(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _flag(model: type[BaseModel], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True)
    value = str(default).lower() if isinstance(default, bool) else default
    shown = "" if default in (None, (), "") else f" Default: {value}."
    description = (field.description or "").rstrip(".")
    text = f"{description}. Allowed: {allowed(model, name)}.{shown}"
    option = typer.Option("--" + name.replace("_", "-"), help=text, show_default=False, metavar="VALUE")
    annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
