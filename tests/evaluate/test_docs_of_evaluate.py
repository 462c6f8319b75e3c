"""docs/evaluate.md: its first commands run as they stand, and its tables name what there is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.evaluation.plan import FIXED_NAMES, GRID_NAMES, MAX_CELLS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluate.md").read_text()


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The first block of the page, run by a shell in a folder with the tests' photos."""
    folder = tmp_path_factory.mktemp("tried")
    (folder / "tests").symlink_to(ROOT / "tests")
    block = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1]
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    subprocess.run(["bash", "-euc", block], cwd=folder, check=True, capture_output=True)
    return folder / "report"


def test_the_first_commands_make_a_report(tried):
    summary = json.loads((tried / "summary.json").read_text())
    assert (summary["painted"], summary["complete"]) == (12, True)
    mean = summary["cosine"]["mean"]
    assert mean is None or mean < 0.3, "as the page says of the tiny profile, nobody is recognised"


def test_every_file_of_a_report_is_documented(tried):
    section = PAGE.split("## What it writes\n")[1].split("\n## ")[0]
    names = {file.name + "/" * file.is_dir() for file in tried.iterdir()}
    names |= {"comparison.json", "comparison.csv"}  # of a second report
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert names == set(re.findall(r"`([\w./]+)`", " ".join(first_cells)))


def test_every_parameter_of_a_grid_is_documented():
    row = next(line for line in PAGE.splitlines() if line.startswith("| `--grid"))
    assert re.findall(r"`(\w+)`", row) == list(GRID_NAMES)
    assert "face_index" in FIXED_NAMES
    assert f"more than {MAX_CELLS} pictures" in PAGE
