"""The tables: which tensors a checkpoint has, of which shapes, by the names in its published files.

Made from the recorded layouts and the real classes by tests/files/published_tables.py, which also
proves that they still agree. Compares; opens no checkpoint file.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from importlib.resources import files

from weights.pickles import TensorInfo
from weights.tensor_files import listed

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Table(Mapping[str, Shape]):
    """Maps each key that a checkpoint must have to its shape."""

    required: dict[str, Shape]
    optional: dict[str, Shape]  # in some published files, and not in others
    ignored: re.Pattern[str]  # keys of other parts of the model in the same file
    dtypes: frozenset[str]  # that a file of it may have

    def __getitem__(self, key: str) -> Shape:
        return self.required[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.required)

    def __len__(self) -> int:
        return len(self.required)

    def ignores(self, key: str) -> bool:
        return self.ignored.match(key) is not None

    def of_use(self, key: str) -> bool:
        """Is it a tensor of this checkpoint, not one of what else the file holds?"""
        return key in self.required or key in self.optional


@cache
def table(name: str) -> Table:
    """Raises FileNotFoundError for a name that no table has."""
    packed = (files("weights") / "tables" / f"{name}.json.gz").read_bytes()
    content = json.loads(gzip.decompress(packed))
    return Table(
        required={key: tuple(shape) for key, shape in content["required"].items()},
        optional={key: tuple(shape) for key, shape in content["optional"].items()},
        ignored=re.compile("|".join(translate(pattern) for pattern in content["ignored"]) or r"(?!)"),
        dtypes=frozenset(content["dtypes"]),
    )


def differences(tensors: Mapping[str, TensorInfo], wanted: Table) -> str:
    """How the tensors of a file differ from a table, with examples; empty where they do not."""
    known = wanted.required | wanted.optional
    here = {key: info for key, info in tensors.items() if key in known or not wanted.ignores(key)}
    findings = (
        ("keys are missing", sorted(wanted.required.keys() - tensors.keys())),
        ("keys are unknown", sorted(here.keys() - known.keys())),
        ("shapes differ", _other_shapes(here, known)),
        ("tensors have an unusable dtype", _other_dtypes(here, wanted.dtypes)),
    )
    return "; ".join(f"{len(items)} {title} ({listed(items)})" for title, items in findings if items)


def _other_shapes(tensors: Mapping[str, TensorInfo], known: Mapping[str, Shape]) -> list[str]:
    return [
        f"{key} is {list(info.shape)}, expected {list(known[key])}"
        for key, info in sorted(tensors.items())
        if key in known and info.shape != known[key]
    ]


def _other_dtypes(tensors: Mapping[str, TensorInfo], allowed: frozenset[str]) -> list[str]:
    return [f"{key} is {info.dtype}" for key, info in sorted(tensors.items()) if info.dtype not in allowed]
