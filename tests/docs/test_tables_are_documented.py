"""The tables in code and the tables for people say the same: profiles, weights."""

import re

import pytest

from docs.project_files import text_of
from pulid.profiles import PROFILES
from weights.manifest import MANIFEST, Choice, HubFile, needed

WEIGHTS = "docs/weights-and-licences.md"


def table_row(document, first_cell):
    """The row of a Markdown table that begins with a name in backticks."""
    lines = text_of(document).splitlines()
    return next((line for line in lines if line.startswith(f"| `{first_cell}` ")), "")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_is_documented_with_its_promise(profile):
    row = table_row("docs/profiles.md", profile.name)
    assert profile.promise in row
    assert profile.dtype in row
    assert profile.device.upper() in row


@pytest.mark.parametrize("checkpoint", MANIFEST, ids=lambda checkpoint: checkpoint.name)
def test_every_checkpoint_is_documented_with_its_place_source_and_licence(checkpoint):
    row = table_row(WEIGHTS, checkpoint.name)
    source = checkpoint.files[0].source
    assert f"| `{checkpoint.path}` |" in row
    assert (f"`{source.repo}`" if isinstance(source, HubFile) else f"({source.url})") in row
    assert row.endswith(f"| {checkpoint.licence.name} |")
    assert (", gated" in row) is checkpoint.is_gated


@pytest.mark.parametrize("checkpoint", MANIFEST, ids=lambda checkpoint: checkpoint.name)
def test_every_size_is_documented(checkpoint):
    """In GB or MB, as sizes are sold; what the manifest does not know of a checkpoint is small."""
    number, unit = re.search(r"\| ([\d.]+) (GB|MB) \|", table_row(WEIGHTS, checkpoint.name)).groups()
    written = float(number) * {"GB": 1e9, "MB": 1e6}[unit]
    known = sum(file.size or 0 for file in checkpoint.files)
    assert known == pytest.approx(written, rel=0.05, abs=3e6)


def test_what_is_needed_by_default_is_marked():
    rows = {checkpoint.name: table_row(WEIGHTS, checkpoint.name) for checkpoint in MANIFEST}
    marked = {name for name, row in rows.items() if row.startswith(f"| `{name}` * |")}
    assert marked == {checkpoint.name for checkpoint in needed(Choice(), "exact")}


def test_the_sum_of_what_is_needed_is_the_one_that_is_told():
    files = [file for checkpoint in needed(Choice(), "exact") for file in checkpoint.files]
    told = f"{sum(file.size or 0 for file in files) / 1e9:.1f} GB"
    for document in (WEIGHTS, "README.md", "docs/deployment.md"):
        assert told in text_of(document), document
