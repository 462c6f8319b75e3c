"""A weights folder with every published layout: the real file names and keys, tensors of a few numbers.

The checkpoints are those of the manifest, with the sizes and hashes of these files in the place of the
real ones; `tables` is what their tensors are held against.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePath

import torch
from safetensors.torch import save_file

from weights.manifest import MANIFEST
from weights.tables import table

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "I64": torch.int64}


def tables(name):
    """The table of that name, no dimension larger than 2."""
    real = table(name)
    return replace(real, required=small(real.required), optional=small(real.optional))


def small(shapes):
    return {key: tuple(min(length, 2) for length in shape) for key, shape in shapes.items()}


def tensors(name, fill=0.0, dtype=torch.float32):
    return {key: torch.full(shape, fill).to(dtype) for key, shape in tables(name).items()}


def onnx(size=3000):
    """An empty graph under a name of `size` bytes; ModelProto's fields 1 and 7, GraphProto's field 2."""
    name = b"\x12" + varint(size) + b"x" * size
    return b"\x08\x08\x3a" + varint(len(name)) + name


def varint(number):
    head = bytes([number & 0x7F | 0x80]) if number > 0x7F else b""
    return head + (varint(number >> 7) if number > 0x7F else bytes([number]))


def make(home, checkpoints=MANIFEST):
    """Write their files below `home`; the checkpoints with sizes and hashes of what was written."""
    made = []
    for index, checkpoint in enumerate(checkpoints):
        write(checkpoint, home, fill=index + 1)
        made.append(
            replace(checkpoint, files=tuple(as_written(file, home / file.path) for file in checkpoint.files))
        )
    return made


def as_written(file, path):
    """Known as well as the real one is: hashes of small texts are in no manifest."""
    content = path.read_bytes()
    is_known = file.sha256 is not None
    return replace(
        file,
        size=len(content) if is_known else None,
        sha256=sha256(content).hexdigest() if is_known else None,
    )


def write(checkpoint, home, fill=1.0):
    paths = [home / file.path for file in checkpoint.files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in {".safetensors", ".pt", ".pth"}:
            path.write_bytes(onnx(1000 * int(fill)) if path.suffix == ".onnx" else text_of(path))
    files = [path for path in paths if path.suffix in {".safetensors", ".pt", ".pth"}]
    if files:
        dtype = torch.float8_e4m3fn if checkpoint.name.endswith("fp8") else torch.float32
        write_shards(files, tensors(checkpoint.table, fill, dtype))


def text_of(path):
    return json.dumps({"file": f"{path.parent.name}/{path.name}"}).encode() + b"\n"


def write_shards(files, state):
    """Into one file, or some into each with an index beside them."""
    keys = sorted(state)
    file_of = {key: files[index * len(files) // len(keys)] for index, key in enumerate(keys)}
    for file in files:
        save({key: state[key] for key in keys if file_of[key] == file}, file)
    if len(files) > 1:
        prefix = files[0].name.split("-0")[0]
        write_index(files[0].with_name(f"{prefix}.safetensors.index.json"), file_of)


def write_index(path, file_of):
    weight_map = {key: PurePath(file).name for key, file in file_of.items()}
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def save(state, path):
    if Path(path).suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save({**state, **others_in(path)}, path)


def others_in(path):
    """What the published file of EVA-CLIP has beside the part that is used."""
    if "EVA" not in Path(path).name:
        return {}
    names = ("text.proj", "logit_scale", "visual.rope.freqs_cos", "visual.blocks.0.attn.rope.freqs_sin")
    return {name: torch.ones(3) for name in names}
