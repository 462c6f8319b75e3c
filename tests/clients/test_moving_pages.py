"""The pages about moving from other services: their samples run as printed, and their names exist.

Only the address of the server is changed. A sample that imports a client which the gate does not
install runs in an environment of its own, in a `release` test. Each sample saves one picture.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Script
from live_server import ServerProcess, form_and_size, live_server
from server.api.v1_schemas import FluxPulidRequest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("moving-from-*.md"))
ADDRESS = "http://127.0.0.1:8000"
FOREIGN = {"replicate": "replicate==1.0.7"}  # what a sample imports: what has to be installed for it
SAVED = re.compile(r'open\("(portrait\.(\w+))"')
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", re.MULTILINE)


def samples() -> list[tuple[str, str]]:
    """The name of each Python sample and its code."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
        found += [(f"{page.stem}-{number}", code) for number, code in enumerate(blocks, start=1)]
    return found


def foreign_client(code: str) -> str | None:
    return next((name for name in FOREIGN if f"import {name}\n" in code), None)


HERE = [pytest.param(code, id=name) for name, code in samples() if foreign_client(code) is None]
ELSEWHERE = [pytest.param(code, id=name) for name, code in samples() if foreign_client(code)]


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory, photo_hosts) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("moving")
    script = Script(folder / "script")
    script.folder.mkdir()
    with live_server(
        folder / "data",
        scripted=script,
        photo_hosts=photo_hosts,
        api_keys="samples:YOUR_API_KEY",
        adapters="replicate,openai",
    ) as live:
        yield live


def run_and_look(code: str, server: ServerProcess, folder: Path, python: str | Path) -> None:
    assert code.count(ADDRESS) == 1, "exactly one thing is to be changed"
    script = folder / "sample.py"
    script.write_text(code.replace(ADDRESS, server.url))
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [python, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    [(name, extension)] = SAVED.findall(code)
    width, height = (int(side) for side in sides_of(code))
    assert form_and_size((folder / name).read_bytes()) == (extension.upper(), (width, height))


def sides_of(code: str) -> tuple[str, str]:
    asked = dict(re.findall(r'"(width|height)": (\d+)', code))
    return asked.get("width", "896"), asked.get("height", "1152")


@pytest.mark.parametrize("code", HERE)
def test_a_sample_saves_its_picture(code, quick_server, tmp_path):
    run_and_look(code, quick_server, tmp_path, sys.executable)


@pytest.mark.release
@pytest.mark.timeout(600)
@pytest.mark.parametrize("code", ELSEWHERE)
def test_a_sample_of_another_client_saves_its_picture(code, quick_server, tmp_path, python_with):
    python = python_with([FOREIGN[foreign_client(code)]])
    run_and_look(code, quick_server, tmp_path, python)


def test_every_page_has_samples_and_every_import_is_known():
    assert {name.rpartition("-")[0] for name, _ in samples()} == {page.stem for page in PAGES}
    assert len(PAGES) == 3
    imports = {name for _, code in samples() for name in re.findall(r"^(?:import|from) (\w+)", code, re.M)}
    assert imports <= {"base64", "httpx", "requests", "segmind", "time", *FOREIGN}


def table_of_parameters(page: Path) -> list[tuple[list[str], list[str]]]:
    """The names there and here, row by row."""
    text = (
        page.read_text().split("## Parameters\n")[1].split("| there | here | differs |\n|---|---|---|\n")[1]
    )
    rows = ROW.findall(text.split("\n\n")[0])
    return [(re.findall(r"`(\w+)`", there), re.findall(r"`(\w+)`", here)) for there, here, _ in rows]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_in_the_column_of_this_server_is_one_of_its_parameters(page):
    table = table_of_parameters(page)
    assert len(table) > 3
    assert {name for _, here in table for name in here} <= set(FluxPulidRequest.model_fields)


@pytest.mark.parametrize("page", ["moving-from-replicate", "moving-from-fal"])
def test_the_table_leaves_out_no_parameter_that_the_other_service_may_have(page):
    told = {name for there, here in table_of_parameters(DOCS / f"{page}.md") for name in here or there}
    plain = list(FluxPulidRequest.model_fields)
    contract = plain[: plain.index("base64")]
    assert set(contract) <= told | {"base64"}


def test_replicate_s_names_are_the_same_where_the_table_says_so():
    names = [there for there, here in table_of_parameters(DOCS / "moving-from-replicate.md") if not here]
    assert set(names[0]) <= set(FluxPulidRequest.model_fields)
