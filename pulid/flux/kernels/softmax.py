"""The softmax of the folded identity attention: short rows, one for each token and head.

A program takes a tile of rows; offset, softmax and rounding in one pass over the scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64


@triton.jit
def head_softmax_kernel(
    scores, offset, out, rows, rows_per_group, heads,
    N: tl.constexpr, N_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, N_BLOCK)[None, :]
    inside = (row < rows) & (column < N)
    here = row.to(tl.int64) * N + column
    shift = (row // rows_per_group * heads + row % heads) * N + column
    values = tl.load(scores + here, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(offset + shift, mask=inside, other=0.0)
    values = tl.where(column < N, values, float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=1)[:, None])
    shares = powers / tl.sum(powers, axis=1)[:, None]
    tl.store(out + here, shares.to(out.dtype.element_ty), mask=inside)


def head_softmax(scores: Tensor, offset: Tensor, heads: int) -> Tensor:
    """As `plain.head_softmax`. Both inputs must be contiguous."""
    groups, tokens, width = scores.shape
    out = torch.empty_like(scores)
    rows = groups * tokens * heads
    n = width // heads
    head_softmax_kernel[(triton.cdiv(rows, ROWS),)](
        scores, offset, out, rows, tokens * heads, heads,
        N=n, N_BLOCK=triton.next_power_of_2(n), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return out
