"""The input of a single block's last linear: attention, and GELU of the MLP, side by side in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def beside_gelu_kernel(
    attention, mlp, out,
    attention_row, attention_token, mlp_row, mlp_token, tokens,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = column < DIM
    right = (column >= DIM) & (column < WIDTH)
    kept = tl.load(attention + row * attention_row + token * attention_token + column, mask=left, other=0.0)
    inner = tl.load(mlp + row * mlp_row + token * mlp_token + column - DIM, mask=right, other=0.0)
    x = inner.to(tl.float32)
    # (1 + tanh(u)) / 2 is the logistic function of 2u
    twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 * sqrt(2 / pi)
    activated = (x / (1.0 + tl.exp(-twice))).to(out.dtype.element_ty)
    target = out + (row * tokens + token) * WIDTH + column
    tl.store(target, tl.where(left, kept, activated), mask=column < WIDTH)


def beside_gelu(attention: Tensor, mlp: Tensor) -> Tensor:
    """As `plain.beside_gelu`. `mlp` may lie in the packed projections."""
    batch, tokens, dim = attention.shape
    width = dim + mlp.shape[-1]
    out = torch.empty((batch, tokens, width), dtype=attention.dtype, device=attention.device)
    beside_gelu_kernel[(triton.cdiv(width, BLOCK), tokens, batch)](
        attention, mlp, out,
        attention.stride(0), attention.stride(1), mlp.stride(0), mlp.stride(1), tokens,
        DIM=dim, WIDTH=width, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out
