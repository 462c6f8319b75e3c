"""The README opens with what the gate runs, and the command line knows the commands of all documents."""

import re
import shlex

import pytest
import typer

from docs.project_files import ROOT, documents, text_of
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


def calls_in_documents():
    """Each once."""
    calls = [tuple(call) for name in documents() for call in flux_pulid_calls(text_of(name))]
    return sorted(set(calls))


def parse(arguments):
    """Parse a command line with the real commands, without running it. Raises on an unknown flag."""
    command, rest = typer.main.get_command(app), list(arguments)
    with typer.Context(command, info_name="flux-pulid") as context:
        while isinstance(command, typer.core.TyperGroup):
            name, command, rest = command.resolve_command(context, rest)
        return command.make_context(name, rest, parent=context)


def test_the_first_command_makes_an_environment_and_a_picture():
    first = code_lines(README)[0]
    assert first.startswith(
        f"python -m venv .venv && .venv/bin/pip install {INSTALL} && .venv/bin/flux-pulid generate "
    )


def test_the_photo_of_the_first_command_exists():
    (photo,) = parse(flux_pulid_calls(README)[0]).params["face"]
    assert (ROOT / photo).is_file()


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


@pytest.mark.parametrize("arguments", calls_in_documents(), ids=" ".join)
def test_every_flux_pulid_command_in_the_documents_parses(arguments):
    parse(arguments)


@pytest.mark.parametrize("command", [["generate"], ["weights", "fetch"]], ids=" ".join)
def test_an_unknown_flag_would_not_parse(command):
    with pytest.raises(Exception, match="no-such-flag"):
        parse([*command, "--no-such-flag"])


def test_the_gpu_quick_start_is_three_commands_to_a_running_server():
    section = README.split("## GPU quick start\n")[1].split("\n## ")[0]
    assert len(code_lines(section)) == 3
    assert flux_pulid_calls(section) == [["weights", "fetch"], ["doctor"], ["serve"]]
    assert "-c configs/constraints.txt -e . " in code_lines(section)[0]
