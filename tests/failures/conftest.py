"""The right pictures, from a server that nothing happens to; and a line of figures for each crash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from failures.books import Books, Undisturbed
from fakes import Script
from live_server import live_server


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    folder = tmp_path_factory.mktemp("undisturbed")
    script = Script(folder / "script")
    script.folder.mkdir()
    for order in ("oom once at step 1", "crash once while preparing"):
        script.is_first(order)  # here it has happened already
    with live_server(folder / "data", scripted=script) as server:
        yield Undisturbed(server)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Of engines that do what they like; `gated_script` for those that wait before each step."""
    folder = tmp_path / "script"
    folder.mkdir()
    return Script(folder)


@pytest.fixture
def gated_script(script: Script) -> Script:
    return Script(script.folder, gated=True)


@pytest.fixture
def publish(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Books], None]:
    """Print what became of the jobs, also where tests are run without -s."""

    def print_line(what: str, books: Books) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{what}: {books}\n")

    return print_line
