"""Linears that read the same input, as one matrix: one GEMM in place of three or four.

Weights and biases move into one tensor and the linears become views of it, so memory holds them once.
Whoever moves or casts the network afterwards tears them apart again: pack last.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from pulid.flux.kernels.plain import E4M3, Rows
from pulid.flux.quantised import SCALE, matrix

Matrix = Tensor | Rows  # (out, in); quantised where its linear is


class StreamWeights(NamedTuple):
    """Text or image in a double block, of width D. Vectors named *_bias belong to the matrix before."""

    qkv: Matrix  # (3D, D)
    qkv_bias: Tensor
    norm_q: Tensor  # (head_dim,)
    norm_k: Tensor
    out: Matrix  # (D, D)
    out_bias: Tensor
    up: Matrix  # (4D, D)
    up_bias: Tensor
    down: Matrix  # (D, 4D)
    down_bias: Tensor


class DoubleWeights(NamedTuple):
    text: StreamWeights
    image: StreamWeights


class SingleWeights(NamedTuple):
    """A single block of width D."""

    into: Matrix  # (7D, D): query, key, value, then the MLP's inner states
    into_bias: Tensor
    norm_q: Tensor  # (head_dim,)
    norm_k: Tensor
    out: Matrix  # (D, 5D): from attention, then from the MLP
    out_bias: Tensor


@torch.inference_mode(False)
@torch.no_grad()
def packed(linears: Sequence[nn.Linear]) -> tuple[Matrix, Tensor]:
    """Weights and biases of all linears in one tensor each, in this order. The linears become views.

    Rows have scales of their own, so quantised ones are packed alike.
    """
    weights, biases = (_joined([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    if not hasattr(linears[0], SCALE):
        return weights, biases
    return Rows(weights, _joined([getattr(linear, SCALE) for linear in linears])), biases


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """Their rows one after the other; without a copy where they already lie so."""
    first, *others = parameters
    rows = [len(parameter) for parameter in parameters]
    end = first
    for parameter in others:
        if not _follows(end, parameter):
            break
        end = parameter
    else:
        return first.data.as_strided((sum(rows), *first.shape[1:]), first.stride())
    together = _above_one_another([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, together.split(rows), strict=True):
        parameter.data = view
    return together


def _above_one_another(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dtype is E4M3:  # as bytes: not every build of torch joins fp8
        return torch.cat([tensor.view(torch.uint8) for tensor in tensors]).view(E4M3)
    return torch.cat(tuple(tensors))


def _follows(one: Tensor, other: Tensor) -> bool:
    return (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        and one.is_contiguous()
        and other.is_contiguous()
    )


def block_without_modulation(block: nn.Module) -> nn.ModuleList:
    """Those of its modules that a pass reads; what gives its modulation is read by itself."""
    return nn.ModuleList(part for name, part in block.named_children() if not name.startswith("norm"))


def double_weights(transformer: FluxTransformer2DModel) -> list[DoubleWeights]:
    """Of each double block, packed."""
    return [
        DoubleWeights(
            text=_stream(
                (block.attn.add_q_proj, block.attn.add_k_proj, block.attn.add_v_proj),
                (block.attn.norm_added_q.weight, block.attn.norm_added_k.weight),
                (block.attn.to_add_out, block.ff_context.net[0].proj, block.ff_context.net[2]),
            ),
            image=_stream(
                (block.attn.to_q, block.attn.to_k, block.attn.to_v),
                (block.attn.norm_q.weight, block.attn.norm_k.weight),
                (block.attn.to_out[0], block.ff.net[0].proj, block.ff.net[2]),
            ),
        )
        for block in transformer.transformer_blocks
    ]


def _stream(qkv: Sequence[nn.Linear], norms: Sequence[Tensor], others: Sequence[nn.Linear]) -> StreamWeights:
    out, up, down = others
    norm_q, norm_k = norms
    return StreamWeights(
        *packed(qkv),
        norm_q.data, norm_k.data,
        matrix(out), out.bias.data, matrix(up), up.bias.data, matrix(down), down.bias.data,
    )  # fmt: skip


def single_weights(transformer: FluxTransformer2DModel) -> list[SingleWeights]:
    """Of each single block, packed."""
    return [
        SingleWeights(
            *packed((block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp)),
            block.attn.norm_q.weight.data, block.attn.norm_k.weight.data,
            matrix(block.proj_out), block.proj_out.bias.data,
        )
        for block in transformer.single_transformer_blocks
    ]  # fmt: skip
