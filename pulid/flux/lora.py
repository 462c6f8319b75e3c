"""LoRA files: low-rank changes that are added to the transformer's weights while these are loaded.

Reads the key styles of diffusers, of Kohya and ComfyUI (which speak of Black Forest Labs' layout)
and of XLabs. Each pair of matrices becomes changes of the transformer's own weights, as diffusers
names them; of a fused weight each part gets its rows. Parts for text encoders are counted, not
applied. Anything else that a file holds is an error, raised before any weight is touched.

Does not know where files come from, nor the device: `merged` computes where the weight is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pulid.errors import WeightsMissing
from pulid.flux.checkpoint import bfl_transformer_shapes, transformer_tensors
from pulid.state_files import State, metadata_of, read_state
from pulid.strict_load import READABLE, Shapes

_PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer."),
    *("lora_transformer_", "lora_unet_"),
)
_TEXT_PREFIXES = ("lora_te", "text_encoder", "text_model.")
_LEAF = re.compile(
    r"(?P<stem>.+?)\.(?:(?P<down>lora_A|lora_down|lora\.down|down)|(?P<up>lora_B|lora_up|lora\.up|up))"
    r"(?:\.default)?\.weight"
)
_ALPHA = ".alpha"
_ADAPTER = "lora_adapter_metadata"  # where diffusers keeps alpha: in the file's metadata, as JSON
_SHOWN = 4  # how many keys an error names


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """factor * up @ down is added to a weight (out, in)."""

    up: Tensor  # (out, rank), in the file's dtype
    down: Tensor  # (rank, in)
    factor: float  # scale * alpha / rank


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """One file at one scale."""

    file: Path
    scale: float
    changes: Mapping[str, tuple[Change, ...]]  # by the transformer's weights
    text_tensors: int  # for text encoders; not applied

    def __str__(self) -> str:
        unused = f" (without its {self.text_tensors} tensors for text encoders)" if self.text_tensors else ""
        return f"{self.file.name} at {self.scale:g}{unused}"


def merged(weight: Tensor, changes: Iterable[Change]) -> Tensor:
    """The weight with its changes, in float32, on the weight's device."""
    total = weight.to(torch.float32, copy=True)
    for change in changes:
        up, down = (matrix.to(weight.device).float() for matrix in (change.up, change.down))
        total.addmm_(up, down, alpha=change.factor)
    return total


def read_lora(file: Path, scale: float, transformer: Shapes) -> Lora:
    """The changes that a file makes to a transformer of these names and shapes (diffusers').

    Reads names and shapes only; the numbers stay in the file. Raises WeightsMissing.
    """
    if file.suffix != ".safetensors":
        raise _refused(file, "is no .safetensors file, and no other kind of LoRA file is read")
    if not math.isfinite(scale):
        raise _refused(file, f"cannot be added at the scale {scale}")
    state = read_state(file)
    own = {key: tensor for key, tensor in state.items() if not key.startswith(_TEXT_PREFIXES)}
    if not own:
        raise _refused(file, "has nothing for the FLUX transformer")
    changes: dict[str, tuple[Change, ...]] = {}
    for pair in _pairs(file, own, _places(transformer)):
        for name, change in pair.changes(scale):
            changes[name] = (*changes.get(name, ()), change)
    return Lora(file, scale, changes if scale else {}, len(state) - len(own))


# ---- from keys to pairs ----


class _Place(NamedTuple):
    """A weight that a LoRA file may name: its shape, and how its rows are shared out."""

    shape: tuple[int, ...]
    split: Callable[[Tensor], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    up: Tensor
    down: Tensor
    alpha: float
    place: _Place

    def changes(self, scale: float) -> Iterator[tuple[str, Change]]:
        factor = scale * self.alpha / self.down.shape[0]
        for name, rows in self.place.split(self.up):
            yield name, Change(rows, self.down, factor)


def _pairs(file: Path, state: State, places: Mapping[str, _Place]) -> list[_Pair]:
    """Every pair of matrices in the file. Raises WeightsMissing unless that is all there is."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        stem, part = _stem_and_part(key)
        if not part or stem not in places:
            unknown.append(key)
        elif part in found.setdefault(stem, {}):
            raise _refused(file, f"names the same matrix twice: {key}, and another way of writing it")
        else:
            found[stem][part] = tensor
    if unknown:
        raise _refused(file, f"has keys that no LoRA for FLUX.1-dev has ({_some(unknown)})")
    alpha_of = _alphas_in_metadata(file)
    return [_pair(file, stem, parts, places[stem], alpha_of(stem)) for stem, parts in found.items()]


def _pair(file: Path, stem: str, parts: Mapping[str, Tensor], place: _Place, alpha: float | None) -> _Pair:
    if missing := {"down", "up"} - parts.keys():
        raise _refused(file, f"has only half of a pair: {stem} has no {missing.pop()} matrix")
    up, down = parts["up"], parts["down"]
    rows, columns = place.shape
    rank = down.shape[0] if down.ndim else 0
    if rank == 0 or up.shape != (rows, rank) or down.shape != (rank, columns):
        raise _refused(
            file,
            f"does not fit: {stem} has matrices {tuple(up.shape)} and {tuple(down.shape)},"
            f" expected ({rows}, rank) and (rank, {columns})",
        )
    if not {up.dtype, down.dtype} <= READABLE:
        raise _refused(file, f"is of a kind that is not read: {stem} is {up.dtype} and {down.dtype}")
    return _Pair(up, down, _alpha(file, stem, parts.get("alpha"), alpha, rank), place)


def _alpha(file: Path, stem: str, tensor: Tensor | None, from_metadata: float | None, rank: int) -> float:
    if tensor is None:
        return float(rank) if from_metadata is None else from_metadata
    if tensor.numel() != 1 or not tensor.float().isfinite().all():
        raise _refused(file, f"has an alpha for {stem} that is not one number")
    return float(tensor)


def _stem_and_part(key: str) -> tuple[str, str]:
    """What a key changes and which matrix of it it is; the part is empty where neither can be told."""
    if key.endswith(_ALPHA):
        stem, part = key.removesuffix(_ALPHA), "alpha"
    elif match := _LEAF.fullmatch(key):
        stem, part = match["stem"], "down" if match["down"] else "up"
    else:
        return key, ""
    for prefix in _PREFIXES:
        stem = stem.removeprefix(prefix)
    return stem, part


# ---- which weights may be named, and how ----


def _places(transformer: Shapes) -> dict[str, _Place]:
    """Every matrix under all the names that the styles have for it; Kohya's have _ instead of dots."""
    dotted = dict(_diffusers_places(transformer))
    dotted |= _bfl_places(bfl_transformer_shapes(transformer))
    return {stem.replace(".", "_"): place for stem, place in dotted.items()} | dotted


def _diffusers_places(transformer: Shapes) -> Iterator[tuple[str, _Place]]:
    for name, shape in _matrices(transformer):
        yield name.removesuffix(".weight"), _Place(shape, partial(_whole, name))


def _matrices(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((name, shape) for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2)


def _whole(name: str, up: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, up


def _bfl_places(shapes: Shapes) -> dict[str, _Place]:
    places = {
        key.removesuffix(".weight"): _Place(shape, partial(transformer_tensors, key))
        for key, shape in _matrices(shapes)
    }
    return places | dict(_xlabs_places(places))


def _xlabs_places(bfl: Mapping[str, _Place]) -> Iterator[tuple[str, _Place]]:
    """XLabs name the processor of a block; 1 is the picture's half of a double block, 2 the text's.

    Source: https://github.com/XLabs-AI/x-flux, src/flux/modules/layers.py.
    """
    for stem, place in bfl.items():
        block, _, part = stem.partition("_attn.")
        if part:  # such as double_blocks.0.img_attn.qkv
            block, half = block.rsplit(".", 1)
            yield f"{block}.processor.{part}_lora{1 if half == 'img' else 2}", place
        elif stem.startswith("single_blocks.") and stem.endswith(".linear2"):
            yield f"{stem.removesuffix('.linear2')}.processor.proj_lora", place
        elif stem.startswith("single_blocks.") and stem.endswith(".linear1"):
            yield f"{stem.removesuffix('.linear1')}.processor.qkv_lora", _without_mlp(place)


def _without_mlp(place: _Place) -> _Place:
    """A single block's fused weight without the rows of the MLP: three parts of seven."""
    rows, columns = place.shape

    def split(up: Tensor) -> Iterator[tuple[str, Tensor]]:
        names = [name for name, _ in place.split(up.new_empty((rows, 0)))]
        return zip(names, up.chunk(3), strict=False)  # names has the MLP's too, which gets none

    return _Place((rows // 7 * 3, columns), split)


# ---- alpha in the metadata ----


def _alphas_in_metadata(file: Path) -> Callable[[str], float | None]:
    """What diffusers wrote beside the tensors, by the name of a weight. None where it wrote nothing."""
    adapter = _adapter(file)
    if adapter.get("use_rslora") or adapter.get("use_dora"):
        raise _refused(file, "is a rank-stabilised or DoRA adapter, which is not read")
    alpha, pattern = adapter.get("lora_alpha"), adapter.get("alpha_pattern") or {}
    alphas = [alpha or 0, *pattern.values()] if isinstance(pattern, dict) else [None]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in alphas):
        raise _refused(file, f"has metadata ({_ADAPTER}) in which alpha is no number")

    def alpha_of(stem: str) -> float | None:
        own = [value for name, value in pattern.items() if f".{stem}".endswith(f".{name}")]
        return own[0] if own else alpha

    return alpha_of


def _adapter(file: Path) -> dict[str, Any]:
    """Diffusers' record of how the transformer's part was trained; empty where there is none."""
    try:
        record = json.loads(metadata_of(file).get(_ADAPTER, "{}"))
        return {key.removeprefix("transformer."): value for key, value in record.items()}
    except (ValueError, AttributeError, RecursionError) as exc:
        raise _refused(file, f"has metadata ({_ADAPTER}) that cannot be read") from exc


def _refused(file: Path, what: str) -> WeightsMissing:
    return WeightsMissing(
        f"The LoRA {file} {what}. Use a LoRA made for FLUX.1-dev, or take it out of the setting lora."
    )


def _some(keys: list[str]) -> str:
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(sorted(keys)[:_SHOWN]) + more
