"""`flux-pulid keys`: make, list and remove API keys in the file that api_keys_file names.

A key is shown once, when it is made; the file holds its SHA-256. The file is replaced whole, with
mode 0600 and under a lock on its folder, so a server never reads half of it and two commands at
once lose nothing. What reads the file is server/security/auth.py.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from server.cli.failures import clean_exit
from server.security.auth import digest_of, read_keys_file
from server.settings import KEY_NAME, SettingsError, load_settings

_HINT = "Running servers read the file again on SIGHUP: kill -HUP <pid>, or systemctl reload."

app = typer.Typer(help="API keys in a file: add, list, remove.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits, dot, dash, underscore.")]
File = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys. Default: the setting api_keys_file.", metavar="FILE"),
]


@app.command()
def add(name: Name, file: File = None) -> None:
    """Make a key, print it, and write its name and hash to the file."""
    with clean_exit():
        if not re.fullmatch(KEY_NAME, name):
            raise SettingsError("The name of a key has 1 to 64 letters, digits, dots, dashes or underscores.")
        path = file_of_keys(file)
        key = f"SG_{secrets.token_hex(16)}"
        with locked(path):
            if name in _names(path):
                raise SettingsError(
                    f"There is a key named {name} already. Remove it first, or choose another name."
                )
            replace(path, [*_lines(path), f"{name} {digest_of(key).hex()}"])
        typer.echo(key)
        typer.echo(f"Keep it: it is not shown again. {_HINT}", err=True)


@app.command("list")
def list_names(file: File = None) -> None:
    """Print the names in the file, one a line."""
    with clean_exit():
        for key in read_keys_file(file_of_keys(file)):
            typer.echo(key.name)


@app.command()
def remove(name: Name, file: File = None) -> None:
    """Take a key out of the file."""
    with clean_exit():
        path = file_of_keys(file)
        with locked(path):
            if name not in _names(path):
                raise SettingsError(f"There is no key named {name} in {path}.")
            replace(path, [line for line in _lines(path) if line.split()[:1] != [name]])
        typer.echo(f"Removed {name}. {_HINT}", err=True)


def file_of_keys(file: Path | None) -> Path:
    """The file itself, also where a link leads to it. Raises SettingsError when none is named."""
    path = file or load_settings().settings.api_keys_file
    if path is None:
        raise SettingsError("Which file of keys? Add --file FILE, or set FLUX_PULID_API_KEYS_FILE.")
    return path.expanduser().resolve()


def _names(path: Path) -> set[str]:
    return {key.name for key in read_keys_file(path)} if path.exists() else set()


def _lines(path: Path) -> list[str]:
    """All lines, comments too."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One command at a time. The lock is the folder's, because the file itself is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise _cannot_write(path, exc) from exc
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def replace(path: Path, lines: list[str]) -> None:
    """Write the file anew, for its owner alone. Raises SettingsError; the old file then stays."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    except OSError as exc:
        raise _cannot_write(path, exc) from exc
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():  # root may edit the file of the server's own user
                owner = path.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except OSError as exc:
        Path(name).unlink(missing_ok=True)
        raise _cannot_write(path, exc) from exc


def _cannot_write(path: Path, exc: OSError) -> SettingsError:
    return SettingsError(f"The file of API keys {path} cannot be written: {exc.strerror}.")
