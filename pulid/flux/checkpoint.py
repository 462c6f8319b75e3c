"""Black Forest Labs' checkpoint layout, key by key, as diffusers names it.

Transformer and autoencoder come in two layouts. Each function takes one tensor of the BFL layout
and gives the diffusers tensors made of it, so that a file can be streamed. Knows names and shapes,
no files. Tables: docs/spec/PULID_SPEC.md, section 8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Named = Iterator[tuple[str, Tensor]]

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
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)\.(weight|bias|scale)")


def is_bfl_transformer(keys: Mapping[str, object]) -> bool:
    return "img_in.weight" in keys


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
    if name == "final_layer.adaLN_modulation.1":
        shift, scale = tensor.chunk(2)  # diffusers has the scale first
        yield f"norm_out.linear.{leaf}", torch.cat((scale, shift))
    else:
        yield f"{_TRANSFORMER_TOP[name]}.{leaf}", tensor


def _double_block(name: str, tensor: Tensor) -> Named:
    if name in _DOUBLE_BLOCK_SPLIT:
        yield from zip(_DOUBLE_BLOCK_SPLIT[name], tensor.chunk(3), strict=True)
    else:
        yield _DOUBLE_BLOCK[name], tensor


def _single_block(name: str, tensor: Tensor) -> Named:
    if name == "linear1":  # query, key, value of the width and the MLP of four times the width
        width = tensor.shape[0] // 7
        parts = tensor.split([width, width, width, 4 * width])
        yield from zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True)
    else:
        yield _SINGLE_BLOCK[name], tensor


_AUTOENCODER_RENAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.attn_1\."), ".mid_block.attentions.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.down\.(\d)\.block\.(\d)\."), r".down_blocks.\1.resnets.\2."),
    (re.compile(r"\.down\.(\d)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    # The decoder counts its levels from the other end.
    (re.compile(r"\.up\.(\d)\.block\.(\d)\."), lambda m: f".up_blocks.{3 - int(m[1])}.resnets.{m[2]}."),
    (re.compile(r"\.up\.(\d)\.upsample\."), lambda m: f".up_blocks.{3 - int(m[1])}.upsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"coder\.norm_out\."), "coder.conv_norm_out."),
)
_AUTOENCODER_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def is_bfl_autoencoder(keys: Mapping[str, object]) -> bool:
    return "decoder.mid.block_1.norm1.weight" in keys


def autoencoder_tensors(key: str, tensor: Tensor) -> Named:
    """The diffusers tensor of one BFL autoencoder tensor."""
    for pattern, replacement in _AUTOENCODER_RENAMES:
        key = pattern.sub(replacement, key)
    head, attention, tail = key.partition(".attentions.0.")
    if attention:
        name, _, leaf = tail.rpartition(".")
        key = f"{head}{attention}{_AUTOENCODER_ATTENTION[name]}.{leaf}"
        if tensor.ndim == 4:  # a 1x1 convolution there, a matrix here
            tensor = tensor[:, :, 0, 0]
    yield key, tensor


def diffusers_layout(
    state: Mapping[str, Tensor],
    is_bfl: Callable[[Mapping[str, object]], bool],
    tensors_of: Callable[[str, Tensor], Named],
) -> dict[str, Tensor]:
    """A state dict in diffusers' layout, whichever of the two it came in.

    A key that the BFL layout does not have is kept, so that strict loading can name it.
    """
    if not is_bfl(state):
        return dict(state)
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        try:
            converted.update(tensors_of(key, tensor))
        except KeyError:
            converted[key] = tensor
    return converted
