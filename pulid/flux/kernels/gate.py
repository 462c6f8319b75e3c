"""A block's output times its gate, plus the residual stream; with the next norm, where one follows at once.

One program for each token. No fused multiply-add: so `gated` is what torch computes, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pulid.flux.kernels.plain import EPS


@triton.jit
def gated_kernel(
    residual, gate, y, out,
    residual_row, residual_token, gate_row, y_row, y_token, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    stream = tl.load(residual + row * residual_row + token * residual_token + column, mask=inside).to(
        tl.float32
    )
    factor = tl.load(gate + row * gate_row + column, mask=inside).to(tl.float32)
    added = tl.load(y + row * y_row + token * y_token + column, mask=inside).to(tl.float32)
    result = stream + factor * added
    tl.store(out + (row * tokens + token) * DIM + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_modulate_kernel(
    residual, gate, y, scale, shift, out, normed,
    residual_row, residual_token, gate_row, y_row, y_token, scale_row, shift_row, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    here = (row * tokens + token) * DIM + column
    stream = tl.load(
        residual + row * residual_row + token * residual_token + column, mask=inside, other=0.0
    ).to(tl.float32)
    factor = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + row * y_row + token * y_token + column, mask=inside, other=0.0).to(tl.float32)
    rounded = (stream + factor * added).to(out.dtype.element_ty)
    tl.store(out + here, rounded, mask=inside)

    values = rounded.to(tl.float32)
    mean = tl.sum(values, axis=0) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / DIM + EPS)
    gain = 1.0 + tl.load(scale + row * scale_row + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(shift + row * shift_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + here, (centred / deviation * gain + bias).to(normed.dtype.element_ty), mask=inside)


def gated(residual: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """As `plain.gated`. Each input may be a run of tokens within a longer sequence."""
    batch, tokens, dim = residual.shape
    out = torch.empty((batch, tokens, dim), dtype=residual.dtype, device=residual.device)
    gated_kernel[(tokens, batch)](
        residual, gate, y, out,
        residual.stride(0), residual.stride(1), gate.stride(0), y.stride(0), y.stride(1), tokens,
        DIM=dim, BLOCK=triton.next_power_of_2(dim), num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def gated_modulate(
    residual: Tensor, gate: Tensor, y: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """As `plain.gated_modulate`."""
    batch, tokens, dim = residual.shape
    out, normed = torch.empty((2, batch, tokens, dim), dtype=residual.dtype, device=residual.device).unbind()
    gated_modulate_kernel[(tokens, batch)](
        residual, gate, y, scale, shift, out, normed,
        residual.stride(0), residual.stride(1), gate.stride(0), y.stride(0), y.stride(1),
        scale.stride(0), shift.stride(0), tokens,
        DIM=dim, BLOCK=triton.next_power_of_2(dim), EPS=EPS, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return out, normed
