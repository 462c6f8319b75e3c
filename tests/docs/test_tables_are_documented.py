"""The tables in code and the tables for people say the same: profiles, weights."""

import pytest
from docs.project_files import text_of

from pulid.profiles import PROFILES
from weights.manifest import MANIFEST, SINGLE_FILES


def table_row(document, first_cell):
    """The row of a Markdown table that begins with a name in backticks."""
    lines = text_of(document).splitlines()
    return next((line for line in lines if line.startswith(f"| `{first_cell}` |")), "")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_is_documented_with_its_promise(profile):
    row = table_row("docs/profiles.md", profile.name)
    assert profile.promise in row
    assert profile.dtype in row
    assert profile.device.upper() in row


@pytest.mark.parametrize("file", MANIFEST, ids=lambda file: file.role)
def test_every_checkpoint_is_documented_with_its_source_and_licence(file):
    row = table_row("docs/weights-and-licences.md", file.path)
    assert file.source in row
    assert file.licence.split(";")[0] in row


@pytest.mark.parametrize("path", SINGLE_FILES.values())
def test_the_single_files_are_documented(path):
    assert f"`{path}`" in text_of("docs/weights-and-licences.md")
