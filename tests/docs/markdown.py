"""Markdown as data: the rows of tables, the fenced blocks, the anchors of headings.

Knows what GitHub makes of a heading. Knows no page and no code of the project.
"""

from __future__ import annotations

import re
from collections import Counter

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def tables(text: str, header: str) -> list[list[str]]:
    """The rows of every table whose first line begins with `header`, as cells without marks around them."""
    rows = []
    for table in re.findall(rf"^{re.escape(header)}.*\n\|[-| :]+\|\n((?:\|.*\n?)*)", text, re.MULTILINE):
        rows += [cells(line) for line in table.splitlines()]
    return rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" |")]


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in one of these languages, in order."""
    return [content for language, content in _FENCE.findall(text) if language in languages]


def without_blocks(text: str) -> str:
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What `#...` may follow the name of a page. Headings of one name are numbered from the second on."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(without_blocks(text)):
        slug = slug_of(heading)
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def slug_of(heading: str) -> str:
    """Lower case, links and marks gone, spaces as dashes: https://github.com/gjtorikian/html-pipeline."""
    words = _LINK.sub(r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
