"""docs/doctor.md names every line that the doctor can write, and shows what it really wrote."""

import re

import pytest

from docs.project_files import PACKAGES, ROOT, text_of
from server.checks.examination import quick, thorough
from server.cli.doctor import MIN_LIKENESS
from server.settings import Settings

TEXT = text_of("docs/doctor.md")
LINE = re.compile(r"^(ok|warning|fault) +(\S+) +\S", re.MULTILINE)


def documented():
    return set(re.findall(r"^\| `([\w:]+)`", TEXT, re.MULTILINE)) - {"cuda:0"}


def in_the_code():
    """The first argument of every finding that is made."""
    sources = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    made = r"\b(?:ok|warning|fault)\(\s*\"(\w+)\""
    return {name for source in sources for name in re.findall(made, source)}


def test_every_line_is_in_the_table_and_no_other():
    assert documented() == in_the_code()


def test_the_quick_lines_are_the_ones_that_are_told(tmp_path):
    told = re.search(r"^The lines (.*?) are also", TEXT, re.MULTILINE | re.DOTALL)[1]
    settings = Settings(profile="exact", data_dir=tmp_path, weights_dir=tmp_path, lora="x")
    assert {finding.check for finding in quick(settings)} == set(re.findall(r"`(\w+)`", told))


def test_the_example_has_the_lines_of_a_real_run(tmp_path):
    example = TEXT.split("```text\n")[1].split("```")[0]
    real = [finding.check for finding in thorough(Settings(profile="tiny", data_dir=tmp_path))]
    assert [check for _, check in LINE.findall(example)] == [*real, "port"]


@pytest.mark.parametrize("words", [f"**{MIN_LIKENESS:.2f}**", "45 GB", "256 MiB", "2 GB"])
def test_the_limits_are_told(words):
    assert words in TEXT
