"""Whether an .onnx file is whole, by its outermost protobuf fields. Reads a few bytes; runs nothing.

A model is one message whose largest field, the graph, states its own length, so a file that was cut
short shows at once. Does not know what is in the graph.
Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, message ModelProto.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_IR_VERSION, _GRAPH = 1, 7
_MAX_FIELD = 30  # ModelProto has fewer
_MAX_FIELDS = 10_000  # metadata come one field each
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _CutShort(Exception):
    """Carries how many bytes are missing."""


def onnx_problem(path: Path) -> str:
    """What is wrong, to be put after the file's name; empty if nothing is. Raises OSError."""
    try:
        with path.open("rb") as file:
            found = _fields(file, os.fstat(file.fileno()).st_size)
    except ValueError:
        return "is no ONNX model, or damaged"
    except _CutShort as exc:
        return f"is cut short: {exc.args[0]:,} bytes are missing at its end"
    return "" if found.get(_IR_VERSION) == _VARINT and found.get(_GRAPH) == _BYTES else "is no ONNX model"


def _fields(file: BinaryIO, size: int) -> dict[int, int]:
    """The kind of each field by its number. Raises ValueError or _CutShort."""
    found: dict[int, int] = {}
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == size:
            return found
        file.seek(at)
        field, kind = divmod(_varint(file), 8)
        if not 0 < field <= _MAX_FIELD or kind not in _LENGTH_OF:
            raise ValueError(field)
        found[field] = kind
        length = _LENGTH_OF[kind](file)
        at = file.tell() + length
        if at > size:
            raise _CutShort(at - size)
    raise ValueError("no model has so many fields")


def _varint(file: BinaryIO) -> int:
    value = 0
    for index in range(10):
        (byte,) = file.read(1)  # a ValueError at the end of the file
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value
    raise ValueError("no number is so long")


_LENGTH_OF: dict[int, Callable[[BinaryIO], int]] = {  # bytes still to come of a field's value
    _VARINT: lambda file: 0 * _varint(file),
    _FIXED64: lambda file: 8,
    _BYTES: _varint,
    _FIXED32: lambda file: 4,
}
