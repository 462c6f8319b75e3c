"""The straight line of docs/architecture.md names files that have what it says they have."""

import ast
import re

import pytest

from docs.markdown import blocks
from docs.project_files import ROOT, text_of

LINE = re.compile(r"^[ \d]{2}\s+([\w/]+\.py)\s.*\s(\w+)$", re.MULTILINE)
(WALK,) = (block for block in blocks(text_of("docs/architecture.md"), "text") if "POST /v2" in block)
HOPS = LINE.findall(WALK)


def test_every_line_of_the_walk_is_a_hop():
    assert len(HOPS) == len(WALK.splitlines()) - 1
    assert len(HOPS) > 20


@pytest.mark.parametrize(("file", "name"), HOPS)
def test_each_hop_is_where_it_is_said_to_be(file, name):
    tree = ast.parse((ROOT / file).read_text())
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, kinds)}
