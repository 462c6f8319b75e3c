"""A linear in int8: the product of whole numbers, both scales and the bias in one pass.

What lies between the product and the result, four bytes for each number, never reaches memory.
Rows and outputs in groups, so that what neighbouring programs read is still near.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pulid.flux.kernels.plain import Rows

BLOCK_ROWS, BLOCK_OUT, BLOCK_IN, GROUP = 128, 128, 128, 8


@triton.jit
def int8_linear_kernel(
    x, x_scale, weight, weight_scale, bias, out, rows, width, outputs,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    across, down = tl.cdiv(outputs, BLOCK_OUT), tl.cdiv(rows, BLOCK_ROWS)
    first = program // (GROUP * across) * GROUP
    group = tl.minimum(down - first, GROUP)
    within = program % (GROUP * across)
    row = (first + within % group) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = within // group * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_row, is_column = row < rows, column < outputs
    here = x + row.to(tl.int64)[:, None] * width
    there = weight + column.to(tl.int64)[None, :] * width
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.int32)
    for start in range(0, width, BLOCK_IN):
        place = start + tl.arange(0, BLOCK_IN)
        inside = place < width
        left = tl.load(here + place[None, :], mask=is_row[:, None] & inside[None, :], other=0)
        right = tl.load(there + place[:, None], mask=is_column[None, :] & inside[:, None], other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    of_rows = tl.load(x_scale + row, mask=is_row, other=0.0)
    of_columns = tl.load(weight_scale + column, mask=is_column, other=0.0)
    added = tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    result = total.to(tl.float32) * of_rows[:, None] * of_columns[None, :] + added[None, :]
    place = row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def int8_linear(x: Rows, weight: Rows, bias: Tensor) -> Tensor:
    """As `plain.int8_linear`. Values and scales without gaps."""
    *outer, width = x.values.shape
    rows, outputs = x.scale.numel(), len(bias)
    out = torch.empty((*outer, outputs), dtype=bias.dtype, device=bias.device)
    programs = triton.cdiv(rows, BLOCK_ROWS) * triton.cdiv(outputs, BLOCK_OUT)
    int8_linear_kernel[(programs,)](
        x.values, x.scale, weight.values, weight.scale, bias, out, rows, width, outputs,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_OUT=BLOCK_OUT, BLOCK_IN=BLOCK_IN, GROUP=GROUP,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out
