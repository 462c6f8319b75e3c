"""docs/quickstart.md is run: its commands for the tiny profile, and they print what it says.

Another port and data folder come in by the environment; the commands themselves are the page's. What
installs is the gate's part (.ci/run), and what needs a card is parsed with the commands of all documents.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from docs.markdown import blocks
from docs.project_files import ROOT, text_of
from docs.test_errors_are_documented import is_said
from docs.test_readme_commands import parse
from live_server import clean_environment, live_server
from server.settings import Settings

CPU_PART = text_of("docs/quickstart.md").split("## With a GPU")[0]
GPU_PART = text_of("docs/quickstart.md").split("## With a GPU")[1]
START, CALL, READY, GENERATE = blocks(CPU_PART, "sh")
START_SAYS, READY_SAYS, GENERATE_SAYS = blocks(CPU_PART, "text")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def last_flux_pulid_call(block):
    """The arguments of the last command of a block."""
    return shlex.split(block.strip().splitlines()[-1])[1:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """As the page starts it."""
    assert last_flux_pulid_call(START) == ["serve", "--profile", "tiny"]
    with live_server(tmp_path_factory.mktemp("quickstart") / "data", profile="tiny") as server:
        yield server


@pytest.fixture
def run_here(server, tmp_path):
    """Run a block of the page in a folder that sees the checkout, against the server."""
    for name in ("tests", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    # Not a link: a console script finds its environment by its own place.
    command = f'#!/bin/sh\nexec "{sys.executable}" -m server "$@"\n'
    (tmp_path / ".venv/bin/flux-pulid").write_text(command)
    (tmp_path / ".venv/bin/flux-pulid").chmod(0o755)
    address = f"http://127.0.0.1:{Settings.model_fields['port'].default}"

    def run(block):
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace(address, server.url)],
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": os.fspath(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    run.folder = tmp_path
    return run


def test_the_server_says_what_the_page_says(server):
    port = server.url.rpartition(":")[2]
    told = [line for line in server.output().splitlines() if not line.startswith("{")]
    assert told == START_SAYS.replace("8000", port).splitlines()


def test_the_page_of_the_server_is_at_the_address_that_is_told(server):
    assert "<http://127.0.0.1:8000/>" in CPU_PART
    answer = server.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_the_call_with_curl_makes_a_picture_and_prints_nothing(run_here):
    done = run_here(CALL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (run_here.folder / "portrait.webp").read_bytes()[8:12] == b"WEBP"


def test_a_refused_call_ends_with_22_and_leaves_the_reason(run_here):
    assert "curl ends with 22 and the file holds the reason" in CPU_PART
    done = run_here(CALL.replace('"width": 512', '"width": 5'))
    assert done.returncode == 22
    assert "width must be" in (run_here.folder / "portrait.webp").read_text()


def test_ready_answers_what_the_page_says(run_here):
    assert run_here(READY).stdout == READY_SAYS.strip()


def test_generate_prints_what_the_page_says(run_here):
    done = run_here(f"({GENERATE.strip()}) 2>&1")
    assert done.returncode == 0, done.stdout
    assert done.stdout == GENERATE_SAYS
    assert (run_here.folder / "portrait.png").read_bytes().startswith(b"\x89PNG")


def test_the_gpu_part_ends_with_a_server_and_a_picture():
    assert last_flux_pulid_call(blocks(GPU_PART, "sh")[0]) == ["serve"]
    assert parse(last_flux_pulid_call(blocks(GPU_PART, "sh")[1])).params["photo"] == "me.jpg"


@pytest.mark.parametrize(
    ("told", "written"),
    [
        ("`Fetching ... files, 36.3 GB.`", "Fetching ..., ..."),
        ("`All files are in ...`", "All files are in ..."),
        ("`Listening on ...`", "Listening on ..."),
        (
            "`Ready: POST http://127.0.0.1:8000/v1/flux-pulid, profile exact",
            "Ready: POST ..., profile ... on",
        ),
        ("`No fault, 0 warnings: the profile exact runs here.`", "No fault, ...: the profile ... runs here."),
    ],
)
def test_what_the_gpu_part_says_is_printed_is_in_the_code(told, written):
    assert told in GPU_PART
    assert is_said(written)


def test_the_installed_command_is_the_one_that_is_run_here():
    assert (SCRIPTS / "flux-pulid").exists()
