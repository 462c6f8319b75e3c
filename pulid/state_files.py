"""Checkpoint files as state dicts whose tensors lie in the file: mapped, not read.

Takes safetensors, as one file or a folder of shards with its index, and torch's .pt and .pth files.
A tensor is a view of the mapped file: its name, dtype and shape cost nothing, its numbers come from
the disk when they are used, and they are the system's file cache, not memory of this process. Only
.pth files of before torch 1.6 cannot be mapped and are read whole.

Does not know which tensors there should be. Whatever is wrong with a file is a WeightsMissing in
one paragraph; nothing that a file holds is ever run.
"""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pulid.errors import WeightsMissing

State = dict[str, Tensor]

PICKLES = {".pt", ".pth"}
REMEDY = "Move it away and run `flux-pulid weights fetch`; `flux-pulid weights list` says what belongs there."
MAX_PICKLE = 16 << 20  # bytes; the largest of the published files has 0.2 MB
# What a pickle of tensors needs. Torch's weights_only takes more, such as a bytearray of any size.
_ALLOWED = {
    "collections OrderedDict",
    *(f"torch._utils _rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter")),
    *(f"torch {dtype}Storage" for dtype in ("Float", "Half", "BFloat16", "Long")),
}


def read_state(path: Path) -> State:
    """The tensors of a file, or of a folder of shards, by name. Raises WeightsMissing."""
    if path.is_dir():
        return _folder(path)
    return _pickle(path) if path.suffix in PICKLES else _safetensors(path)


def metadata_of(file: Path) -> dict[str, str]:
    """The free text that a safetensors file carries beside its tensors. Raises WeightsMissing."""
    return _opened(file).metadata() or {}


def _safetensors(file: Path) -> State:
    opened = _opened(file)
    try:
        return {name: opened.get_tensor(name) for name in opened.offset_keys()}  # front to back
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as exc:
        raise _unreadable(file, f"has a tensor that torch cannot take ({exc})") from exc


def _opened(file: Path) -> safe_open:
    if not file.is_file():
        raise WeightsMissing(f"{file} does not exist. Run `flux-pulid weights fetch`.")
    try:
        return safe_open(file, "pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise _unreadable(file, f"is damaged, cut short, or no safetensors file ({exc})") from exc


# ---- folders ----


def _folder(folder: Path) -> State:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise _unreadable(folder, f"has two indices, {indices[0].name} and {indices[1].name}")
    return _shards(folder, indices[0]) if indices else _safetensors(_only_file(folder))


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise _unreadable(folder, f"has {files[0].name} and {files[1].name}, and no index that names both")
    if not files:
        raise WeightsMissing(f"{folder} has no safetensors file. Run `flux-pulid weights fetch`.")
    return files[0]


def _shards(folder: Path, index: Path) -> State:
    """The tensors of the shards that the index lists, if they are exactly those that it says."""
    shard_of = _shard_of(index)
    state: State = {}
    for shard in sorted(set(shard_of.values())):
        tensors = _safetensors(folder / shard)
        wrong = tensors.keys() ^ {name for name, listed in shard_of.items() if listed == shard}
        if wrong:
            raise _unreadable(
                folder / shard,
                f"and {index.name} do not belong together: they differ in {min(wrong)}",
            )
        state |= tensors
    return state


def _shard_of(index: Path) -> dict[str, str]:
    """The file name that an index gives for each tensor."""
    try:
        listed = json.loads(index.read_bytes())["weight_map"]
        if all(PurePosixPath(name).name == name for name in listed.values()):
            return dict(listed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _unreadable(index, "is damaged, or no index of shards") from exc
    raise _unreadable(index, "names files outside its folder")


# ---- .pt and .pth ----


def _pickle(file: Path) -> State:
    """Without the `module.` that training in parallel leaves before each name."""
    if not file.is_file():
        raise WeightsMissing(f"{file} does not exist. Run `flux-pulid weights fetch`.")
    is_zip = zipfile.is_zipfile(file)
    try:
        names = _names_in_archive(file) if is_zip else _names_in_pickles(file)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, struct.error) as exc:
        raise _unreadable(file, "is damaged, cut short, or no checkpoint of torch") from exc
    if unwanted := names - _ALLOWED:
        raise _unreadable(file, f"holds more than tensors ({min(unwanted)}); nothing of it was run")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as exc:  # torch's unpickler raises whatever the damaged bytes lead it to
        raise _unreadable(file, "is damaged, cut short, or no checkpoint of torch") from exc
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise _unreadable(file, "holds no state dict")
    strays = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if strays:
        raise _unreadable(file, f"holds things that are no tensors ({strays[0]})")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _names_in_archive(file: Path) -> set[str]:
    """Everything that the pickle of a zip archive names. Raises ValueError for what torch has not written."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        (index,) = (entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl")
        is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if is_packed or index.file_size > MAX_PICKLE:
            raise ValueError("it grows when it is read")
        return _names(archive.read(index))


def _names_in_pickles(file: Path) -> set[str]:
    """The same of a file of before torch 1.6: five pickles in a row, then the numbers."""
    with file.open("rb") as opened:
        return set().union(*(_names(opened) for _ in range(5)))


def _names(pickle: bytes | BinaryIO) -> set[str]:
    """A name is asked for by GLOBAL; later ways to ask are none of torch's and count as a name as well."""
    return {
        str(argument if opcode.name == "GLOBAL" else opcode.name)
        for opcode, argument, _ in pickletools.genops(pickle)
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")
    }


def _unreadable(path: Path, what: str) -> WeightsMissing:
    return WeightsMissing(f"{path} {what}. {REMEDY}")
