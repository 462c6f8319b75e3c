"""The repository stands alone: no file of it mentions the machines and rooms it was written in."""

import re

import pytest

from docs.project_files import project_files, text_of

FOREIGN = {
    "a folder beside the repository": r"\.\./(shared|golden)\b",
    "a path of one machine": r"(?<![\w.])/(work|root|opt/wheels)/",
    # A helper thread is fine, and so are the key of that name in the golden manifests and a folder of others.
    "a helper": r"(?i)(?<![\"/])\bhelpers?\b(?!\s+(thread|function|class))",
    "who wrote it": r"(?i)\bclaude\b|\b(llm|ai|coding) agents?\b",
    "where it was written": r"(?i)\bworkplace\b|\bsession (ends|began|starts|is over)\b",
    "a private package index": r"(?i)https?://[\w.-]*\b(artifactory|nexus|devpi|verdaccio|pypi-mirror)\b",
}
NAMES_THE_PATTERNS = "tests/docs/test_the_project_speaks_of_itself.py"


def mentions(text, pattern):
    """(line number, words) of each match. Over the whole text: a match may span a line end."""
    return [(text.count("\n", 0, match.start()) + 1, match[0]) for match in re.finditer(pattern, text)]


@pytest.mark.parametrize("pattern", FOREIGN.values(), ids=FOREIGN.keys())
def test_no_file_mentions(pattern):
    found = [
        f"{name}:{line}: {words}"
        for name in project_files()
        if name != NAMES_THE_PATTERNS and not name.endswith("package-lock.json")  # names others' packages
        for line, words in mentions(text_of(name) or "", pattern)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("see ../shared/spec", True),
        ("in /work/main", True),
        ("written by a helper", True),
        ("when the session ends", True),
        ("an onnxruntime.InferenceSession", False),
        ("FaceRestoreHelper of facexlib", False),
        ("encoding in a helper\nthread", False),
        ("https://example.org/Core/Helper/Models.cs", False),
        ("framework/work/x", False),
        ("session-scoped fixture", False),
    ],
)
def test_the_patterns_catch_what_they_mean_and_nothing_else(line, caught):
    assert any(mentions(line, pattern) for pattern in FOREIGN.values()) is caught
