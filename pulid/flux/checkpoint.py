"""Black Forest Labs' checkpoint layout, key by key, as diffusers names it.

Transformer and autoencoder come in two layouts. A state dict in the BFL layout is checked under the
names of its file, then split and renamed; no number is read or copied by that, but for one matrix
whose halves change places. Knows names and shapes, no files.
Tables: docs/spec/PULID_SPEC.md, section 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pulid.strict_load import Shapes, check_strictly

Named = Iterator[tuple[str, Tensor]]
State = Mapping[str, Tensor]

# BFL prefix -> diffusers prefix, copied as it is.
_TRANSFORMER_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE_BLOCK = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_BLOCK_SPLIT = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE_BLOCK = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_SINGLE_BLOCK_SPLIT = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)\.(weight|bias|scale)")
_DIFFUSERS_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


def _origins(copied: Mapping[str, str], split: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """diffusers name -> BFL name, of one kind of block."""
    parts = {target: name for name, targets in split.items() for target in targets}
    return {target: name for name, target in copied.items()} | parts


_ORIGIN = {target: name for name, target in (*_TRANSFORMER_TOP.items(), _SWAPPED)}
_DOUBLE_ORIGIN = _origins(_DOUBLE_BLOCK, _DOUBLE_BLOCK_SPLIT)
_SINGLE_ORIGIN = _origins(_SINGLE_BLOCK, _SINGLE_BLOCK_SPLIT)


def diffusers_transformer(state: State, wanted: Shapes, *, file: Path | None = None) -> State:
    """A transformer's state dict in diffusers' layout, whichever of the two it came in.

    `wanted` are diffusers' names and shapes. Raises WeightsMissing for a file in the BFL layout that
    does not fit them; one in diffusers' layout is for strict loading to judge.
    """
    if not any(key.startswith(("double_blocks.", "single_blocks.")) for key in state):
        return state
    check_strictly(bfl_transformer_shapes(wanted), state, "FLUX transformer", file=file)
    return {name: part for key, tensor in state.items() for name, part in transformer_tensors(key, tensor)}


def bfl_transformer_shapes(wanted: Shapes) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a BFL file that holds a transformer of diffusers' names and shapes `wanted`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, *rest) in wanted.items():
        key = _bfl_key(name)
        above = shapes.get(key, (0,))[0]  # fused matrices lie one above the other
        shapes[key] = (above + rows, *rest)
    return shapes


def _bfl_key(name: str) -> str:
    if match := _DIFFUSERS_BLOCK.fullmatch(name):
        single, number, part, leaf = match.groups()
        origin = (_SINGLE_ORIGIN if single else _DOUBLE_ORIGIN)[part]
        leaf = "scale" if origin.endswith("_norm") else leaf
        return f"{'single' if single else 'double'}_blocks.{number}.{origin}.{leaf}"
    stem, _, leaf = name.rpartition(".")
    return f"{_ORIGIN[stem]}.{leaf}"


def transformer_tensors(key: str, tensor: Tensor) -> Named:
    """The diffusers tensors of one BFL transformer tensor. Raises KeyError for an unknown key."""
    if match := _BLOCK.fullmatch(key):
        kind, number, name, leaf = match.groups()
        leaf = "weight" if leaf == "scale" else leaf
        block = _double_block if kind == "double" else _single_block
        for target, part in block(name, tensor):
            prefix = "transformer_blocks" if kind == "double" else "single_transformer_blocks"
            yield f"{prefix}.{number}.{target}.{leaf}", part
        return
    name, _, leaf = key.rpartition(".")
    if name == _SWAPPED[0]:
        shift, scale = tensor.chunk(2)  # diffusers has the scale first
        yield f"{_SWAPPED[1]}.{leaf}", torch.cat((scale, shift))
    else:
        yield f"{_TRANSFORMER_TOP[name]}.{leaf}", tensor


def _double_block(name: str, tensor: Tensor) -> Named:
    if name in _DOUBLE_BLOCK_SPLIT:
        yield from zip(_DOUBLE_BLOCK_SPLIT[name], tensor.chunk(3), strict=True)
    else:
        yield _DOUBLE_BLOCK[name], tensor


def _single_block(name: str, tensor: Tensor) -> Named:
    if name in _SINGLE_BLOCK_SPLIT:  # query, key, value of the width and the MLP of four times the width
        width = tensor.shape[0] // 7
        parts = tensor.split([width, width, width, 4 * width])
        yield from zip(_SINGLE_BLOCK_SPLIT[name], parts, strict=True)
    else:
        yield _SINGLE_BLOCK[name], tensor


# diffusers -> BFL. The decoder counts its levels from the other end.
_AUTOENCODER_RENAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\.mid_block\.resnets\.(\d)\."), lambda m: f".mid.block_{int(m[1]) + 1}."),
    (re.compile(r"\.mid_block\.attentions\.0\."), ".mid.attn_1."),
    (re.compile(r"\.down_blocks\.(\d)\.resnets\.(\d)\."), r".down.\1.block.\2."),
    (re.compile(r"\.down_blocks\.(\d)\.downsamplers\.0\."), r".down.\1.downsample."),
    (re.compile(r"\.up_blocks\.(\d)\.resnets\.(\d)\."), lambda m: f".up.{3 - int(m[1])}.block.{m[2]}."),
    (re.compile(r"\.up_blocks\.(\d)\.upsamplers\.0\."), lambda m: f".up.{3 - int(m[1])}.upsample."),
    (re.compile(r"\.conv_shortcut\."), ".nin_shortcut."),
    (re.compile(r"\.conv_norm_out\."), ".norm_out."),
    (re.compile(r"\.attn_1\.group_norm\."), ".attn_1.norm."),
    (re.compile(r"\.attn_1\.to_([qkv])\."), r".attn_1.\1."),
    (re.compile(r"\.attn_1\.to_out\.0\."), ".attn_1.proj_out."),
)


def diffusers_autoencoder(state: State, wanted: Shapes, *, file: Path | None = None) -> State:
    """An autoencoder's state dict in diffusers' layout; see `diffusers_transformer`."""
    if not any(key.startswith("decoder.mid.") for key in state):
        return state
    check_strictly(bfl_autoencoder_shapes(wanted), state, "FLUX autoencoder", file=file)
    return {name: state[_bfl_autoencoder_key(name)].view(shape) for name, shape in wanted.items()}


def bfl_autoencoder_shapes(wanted: Shapes) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a BFL file that holds an autoencoder of diffusers' names and shapes `wanted`."""
    shapes = {_bfl_autoencoder_key(name): shape for name, shape in wanted.items()}
    # The attention's matrices are convolutions of one pixel there.
    return {
        key: (*shape, 1, 1) if ".attn_1." in key and len(shape) == 2 else shape
        for key, shape in shapes.items()
    }


def _bfl_autoencoder_key(name: str) -> str:
    for pattern, replacement in _AUTOENCODER_RENAMES:
        name = pattern.sub(replacement, name)
    return name
