"""What a checkpoint file holds, from its first kilobytes: the name, dtype and shape of each tensor.

Reads safetensors headers and both formats of torch.save without torch, and trusts nothing that is
written in them: every tensor must lie within the file, a safetensors file must be covered exactly,
and a pickle is only read (`weights.pickles`), never executed. Does not know which tensors there
should be, nor what any file is for.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from weights.errors import WrongFile
from weights.pickles import DTYPE_BITS, MAX_DIMENSIONS, Damaged, HoldsCode, Pickle, TensorInfo

PICKLES = {".pt", ".pth"}
SUFFIXES = {".safetensors", *PICKLES}

# The files of FLUX have 0.2 MB of header, a thousand tensors and no more than 0.2 MB of pickle.
MAX_HEADER = 16 << 20  # bytes
MAX_PICKLE = 1 << 20  # bytes
MAX_TENSORS = 20_000
MAX_NAME = 1024  # characters
_SHOWN = 4  # how many items a message names

_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FINGERPRINT_BLOCKS = 64
_BLOCK = 4096  # bytes

_T = TypeVar("_T")


class UnreadableFile(WrongFile):
    """The file is no whole checkpoint. `what` is the reason, to be put after the file's name."""

    def __init__(self, file: Path, what: str):
        super().__init__(f"{file} {what}. Delete it and run `flux-pulid weights fetch`.")
        self.what = what


def tensors_in(path: Path) -> dict[str, TensorInfo]:
    """Name, dtype and shape of every tensor in a .safetensors, .pt or .pth file.

    Takes milliseconds at any size. Raises UnreadableFile, naming the file, for whatever is wrong.
    """
    if path.suffix not in SUFFIXES:
        raise UnreadableFile(path, f"has none of the suffixes {', '.join(sorted(SUFFIXES))}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if instead := not_a_model(file.read(_BLOCK)):
                raise UnreadableFile(path, instead)
            file.seek(0)
            read = _safetensors if path.suffix == ".safetensors" else _torch_file
            return read(path, file, size)
    except OSError as exc:
        raise UnreadableFile(path, f"cannot be read: {exc.strerror or exc}") from exc


def not_a_model(head: bytes) -> str:
    """What the first bytes show the file to be instead of a model; empty if they show nothing such."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file that it points to (`git lfs pull` was not run)"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a model: what was downloaded is an error or a log-in page"
    if len(head) == _BLOCK and not any(head):
        return "begins with zeros: a download reserved the room and did not fill it"
    return ""


def fingerprint(path: Path) -> str:
    """Tells two files apart in a millisecond: SHA-256 over the size and 64 evenly spread blocks of 4 KiB.

    Cheaper than a hash of the whole, and not one: a change between the blocks goes unnoticed, if the
    file is larger than they are together. Raises OSError.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(struct.pack("<Q", size))
        if size <= _FINGERPRINT_BLOCKS * _BLOCK:
            digest.update(file.read(_FINGERPRINT_BLOCKS * _BLOCK))
            return digest.hexdigest()
        for index in range(_FINGERPRINT_BLOCKS):
            at = (size - _BLOCK) * index // (_FINGERPRINT_BLOCKS - 1)
            digest.update(os.pread(file.fileno(), _BLOCK, at))
    return digest.hexdigest()


def state_dict(loaded: Any) -> dict[str, Any]:
    """The tensors by name of what a .pt or .pth file holds, as the published files have them.

    A `module.` that training in parallel leaves before each name is dropped. Raises ValueError for
    anything but names at the top and tensors below.
    """
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ValueError("holds no state dict")
    nested = [name for name, value in loaded.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"is a training checkpoint: it has a dict {nested[0][:80]!a} where tensors belong")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def listed(items: list[str]) -> str:
    """The first few, and how many more."""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


# ---- safetensors ----


def _safetensors(path: Path, file: io.BufferedReader, size: int) -> dict[str, TensorInfo]:
    """Source: https://github.com/huggingface/safetensors#format."""
    if size < 8:
        raise UnreadableFile(path, f"is cut short: {size} bytes")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise UnreadableFile(path, "is no safetensors file: its header would be longer than any is")
    if 8 + length > size:
        raise UnreadableFile(path, "is cut short within its header")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_without_repeats)
        spans = _spans(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise UnreadableFile(path, "has a damaged header") from exc
    if problem := _gap(list(spans.values()), size - 8 - length):
        raise UnreadableFile(path, problem)
    return {name: TensorInfo(header[name]["dtype"], tuple(header[name]["shape"])) for name in spans}


def _without_repeats(pairs: list[tuple[str, _T]]) -> dict[str, _T]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name twice")
    return made


def _spans(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Where each tensor lies, in bytes after the header. Raises what a wrong header leads to."""
    if not all(isinstance(value, str) for value in header.get("__metadata__", {}).values()):
        raise ValueError("metadata that are no text")
    spans = {name: _span(entry) for name, entry in header.items() if name != "__metadata__"}
    _check_names(spans)
    return spans


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("no number of bytes or elements")
    if len(numbers) > 2 + MAX_DIMENSIONS:
        raise ValueError("too many dimensions")
    if (end - begin) * 8 != math.prod(entry["shape"]) * DTYPE_BITS[entry["dtype"]]:
        raise ValueError("offsets that do not fit the shape")
    return begin, end


def _check_names(names: Mapping[str, object]) -> None:
    """Names are shown to people, so they must be fit for it. Raises ValueError."""
    if len(names) > MAX_TENSORS:
        raise ValueError(f"has more than {MAX_TENSORS} tensors")
    if any(len(name) > MAX_NAME or not name.isprintable() for name in names):
        raise ValueError("has a tensor whose name cannot be printed")


def _gap(spans: list[tuple[int, int]], size: int) -> str:
    """What is wrong unless the spans follow one another and end with the file."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            return "has a damaged header: its tensors overlap, or leave gaps"
        reached = end
    if reached > size:
        return f"is cut short: {reached - size:,} bytes are missing at its end"
    return f"has {size - reached:,} bytes too many at its end" if reached < size else ""


# ---- torch.save ----


def _torch_file(path: Path, file: io.BufferedReader, size: int) -> dict[str, TensorInfo]:
    try:
        read = _zip_format if file.read(len(_ZIP)) == _ZIP else _legacy_format
        tensors = state_dict(read(path, size))
        _check_names(tensors)
    except HoldsCode as exc:
        raise UnreadableFile(
            path, f"holds code or objects, not only tensors ({exc}); nothing was run"
        ) from exc
    except Damaged as exc:
        raise UnreadableFile(path, "is cut short, damaged, or no file of torch") from exc
    except ValueError as exc:
        raise UnreadableFile(path, str(exc)) from exc
    strays = [name for name, value in tensors.items() if not isinstance(value, TensorInfo)]
    if strays:
        raise UnreadableFile(path, f"holds things that are no tensors ({listed(strays)})")
    return tensors


def _zip_format(path: Path, size: int) -> Any:
    """Of torch 1.6 and later: a pickle and a file for each storage in an uncompressed zip archive."""
    try:
        with _BoundedReads(path) as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if len(entries) != len(archive.infolist()):  # readers differ in which of two they take
                raise Damaged
            if not all(_is_plain(entry, size) for entry in entries.values()):
                raise Damaged
            name = next(name for name in entries if PurePosixPath(name).name == "data.pkl")
            pickle = Pickle(archive.read(name))
    except (zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError, OverflowError) as exc:
        raise Damaged from exc
    except (ValueError, EOFError, OSError, struct.error, zlib.error) as exc:  # as damage happens to lead to
        raise Damaged from exc
    for storage in pickle.storages.values():
        entry = entries.get(name.removesuffix("data.pkl") + f"data/{storage.key}")
        if entry is None or entry.file_size != storage.size:
            raise Damaged
    return pickle.value


def _is_plain(entry: zipfile.ZipInfo, size: int) -> bool:
    """Is it stored as it is, and wholly within an archive of `size` bytes?"""
    return (
        entry.compress_type == zipfile.ZIP_STORED
        and entry.compress_size == entry.file_size
        and 0 <= entry.header_offset < size - entry.file_size
    )


class _BoundedReads(io.BufferedReader):
    """A file of which nothing long is read at once: neither a directory of entries nor a pickle."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(MAX_PICKLE + 1 if size is None or size < 0 else min(size, MAX_PICKLE + 1))
        if len(data) > MAX_PICKLE:
            raise ValueError("more than any checkpoint has")
        return data


def _legacy_format(path: Path, size: int) -> Any:
    """Of before torch 1.6: five pickles, then the storages, each after its number of elements."""
    with path.open("rb") as file:
        pickles = _in_a_row(file.read(MAX_PICKLE), 5)
        magic, protocol, _system, value, keys = (pickle.value for pickle in pickles)
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise Damaged
        storages = pickles[3].storages
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise Damaged
        if sorted(keys) != sorted(storages) or any(storage.size > size for storage in storages.values()):
            raise Damaged
        at = pickles[-1].at
        for key in keys:
            file.seek(at)
            if file.read(8) != struct.pack("<q", storages[key].length):
                raise Damaged
            at += 8 + storages[key].size
    if at != size:
        raise Damaged
    return value


def _in_a_row(data: bytes, count: int) -> list[Pickle]:
    pickles = [Pickle(data)]
    while len(pickles) < count:
        pickles.append(Pickle(data, pickles[-1].at))
    return pickles
