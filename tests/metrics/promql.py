"""Which metrics and labels a PromQL expression names.

A tokenizer, no parser: it knows what a name is, not what the whole means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r'"(?:\\.|[^"\\])*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"(\w+)\s*\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")
_JOINING = re.compile(r"\b(?:on|group_left)\s*\(([^)]*)\)")
_NAME = re.compile(r"\b([a-zA-Z_]\w*)\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "offset"}


@dataclass(frozen=True)
class Named:
    """What an expression names."""

    metrics: frozenset[str]
    matched: frozenset[tuple[str, str]]  # (metric, label) in a selector
    grouped: frozenset[str]  # labels that results are grouped by
    joined: frozenset[str]  # labels on which two sides meet


def named_in(expression: str) -> Named:
    bare = _RANGE.sub("", _TEXT.sub('""', expression))
    matched = {
        (metric, label) for metric, inside in _SELECTOR.findall(bare) for label in _LABEL.findall(inside)
    }
    rest = _JOINING.sub("", _GROUPING.sub("", re.sub(r"\{[^}]*\}", "", bare)))
    metrics = set(_NAME.findall(rest)) - _WORDS
    return Named(frozenset(metrics), frozenset(matched), _listed(_GROUPING, bare), _listed(_JOINING, bare))


def _listed(clause: re.Pattern[str], expression: str) -> frozenset[str]:
    return frozenset(label.strip() for inside in clause.findall(expression) for label in inside.split(","))
