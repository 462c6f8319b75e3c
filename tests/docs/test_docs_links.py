"""Documents point at things that exist; every page is in the index, every source in the README's tree."""

import re

import pytest

from docs.markdown import anchors, without_blocks
from docs.project_files import PACKAGES, ROOT, documents, project_files, text_of

MARKDOWN_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#[^)]*)?\)")
LINK_WITH_ANCHOR = re.compile(r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)")
TOP_FOLDERS = (*PACKAGES, "training", "configs", "tests", "docs", "bench", r"\.ci", r"\.github")
NAMED_PATH = re.compile(
    rf"`((?:{'|'.join(TOP_FOLDERS)})/[\w./-]*\w\.(?:py|md|toml|json|json\.gz|txt|yml|yaml|sql))`"
)


@pytest.mark.parametrize("name", documents())
def test_every_relative_link_leads_somewhere(name):
    targets = MARKDOWN_LINK.findall(text_of(name))
    missing = [target for target in targets if not ((ROOT / name).parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("name", documents())
def test_every_file_named_by_its_path_exists(name):
    missing = [path for path in NAMED_PATH.findall(text_of(name)) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", documents())
def test_every_link_to_a_heading_finds_it(name):
    lost = [
        f"{page}#{anchor}"
        for page, anchor in LINK_WITH_ANCHOR.findall(without_blocks(text_of(name)))
        if anchor not in anchors(((ROOT / name).parent / page if page else ROOT / name).read_text())
    ]
    assert not lost


def test_a_lost_anchor_would_be_noticed():
    assert anchors("# One, two\n\n## `--generate`\n\n```sh\n# no heading\n```\n## One, two\n") == {
        "one-two",
        "--generate",
        "one-two-1",
    }


def test_the_index_has_every_page_and_the_readme_has_the_index():
    linked = set(MARKDOWN_LINK.findall(text_of("docs/README.md")))
    pages = {
        name.removeprefix("docs/")
        for name in documents()
        if name.startswith("docs/") and not name.startswith("docs/decisions/")
    }
    assert pages - {"README.md"} <= linked
    assert "docs/README.md" in MARKDOWN_LINK.findall(text_of("README.md"))


def readme_tree():
    """The paths of the README's tree: two spaces of indent a level, folders end with a slash."""
    block = text_of("README.md").split("```text\n", 1)[1].split("```", 1)[0]
    paths, folders = set(), []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        paths.add("".join(folders) + ("" if name.endswith("/") else name))
    return paths


def test_every_path_in_the_readme_tree_exists():
    assert readme_tree()
    assert not [path for path in readme_tree() if not (ROOT / path).exists()]


def test_the_readme_tree_names_every_source_file():
    sources = {
        name
        for name in project_files()
        if name.startswith(tuple(f"{package}/" for package in (*PACKAGES, "training")))
        and not name.endswith(("__init__.py", ".json.gz"))  # data: its folder is named
    }
    assert not sources - readme_tree()
