"""The README's opening commands are the ones the gate runs, and the command line knows their flags."""

import re
import shlex

import pytest
import typer
from docs.project_files import ROOT

from server.cli.main import app

README = (ROOT / "README.md").read_text()
INSTALL = "-c configs/constraints.txt -e '.[dev]'"


def code_lines(text):
    """The lines inside the fenced shell blocks of a document, continuation lines joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def script_lines(path):
    return [line.strip().removeprefix("$(BIN)/") for line in (ROOT / path).read_text().splitlines()]


def flux_pulid_calls(text):
    """The argument lists of every `flux-pulid` call in the shell blocks of a document."""
    parts = [part for line in code_lines(text) for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts if "flux-pulid " in part]
    calls = [call for call in words if call and call[0].endswith("flux-pulid")]
    return [call[1:] for call in calls]


def parse(arguments):
    """Parse a command line with the real commands, without running it. Raises on an unknown flag."""
    group = typer.main.get_command(app)
    with typer.Context(group, info_name="flux-pulid") as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        return command.make_context(name, rest, parent=context)


def test_the_first_command_makes_an_environment_and_a_picture():
    first = code_lines(README)[0]
    assert first.startswith(
        f"python -m venv .venv && .venv/bin/pip install {INSTALL} && .venv/bin/flux-pulid generate "
    )


def test_the_photo_of_the_first_command_exists():
    assert (ROOT / parse(flux_pulid_calls(README)[0]).params["face"]).is_file()


def test_the_second_command_is_what_the_gate_runs():
    second = code_lines(README)[1]
    assert second == ".venv/bin/python -m pytest"
    assert any(line.startswith("python -m pytest") for line in script_lines(".ci/run"))


def test_the_gate_installs_as_the_readme_says():
    assert any(INSTALL in line for line in script_lines(".ci/run"))


@pytest.mark.parametrize("check", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"])
def test_make_check_and_the_gate_run_the_same_checks(check):
    assert check in script_lines("Makefile")
    assert check in script_lines(".ci/run")


@pytest.mark.parametrize("arguments", flux_pulid_calls(README), ids=" ".join)
def test_every_flux_pulid_command_in_the_readme_parses(arguments):
    parse(arguments)


def test_an_unknown_flag_would_not_parse():
    with pytest.raises(Exception, match="no-such-flag"):
        parse(["generate", "--no-such-flag"])
