"""LayerNorm and modulation in one pass over the tokens: one program for each token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pulid.flux.kernels.plain import EPS


@triton.jit
def modulate_kernel(
    x, scale, shift, out,
    x_row, x_token, scale_row, shift_row, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    values = tl.load(x + row * x_row + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / DIM + EPS)
    gain = 1.0 + tl.load(scale + row * scale_row + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(shift + row * shift_row + column, mask=inside, other=0.0).to(tl.float32)
    result = centred / deviation * gain + bias
    tl.store(out + (row * tokens + token) * DIM + column, result.to(out.dtype.element_ty), mask=inside)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As `plain.modulate`. x may be a run of tokens within a longer sequence."""
    batch, tokens, dim = x.shape
    out = torch.empty((batch, tokens, dim), dtype=x.dtype, device=x.device)
    modulate_kernel[(tokens, batch)](
        x, scale, shift, out,
        x.stride(0), x.stride(1), scale.stride(0), shift.stride(0), tokens,
        DIM=dim, BLOCK=triton.next_power_of_2(dim), EPS=EPS, num_warps=8,
    )  # fmt: skip
    return out
