"""The pieces before a linear in eight bits: the same passes over memory, which leave values and
one scale a token.

One program for each token, which holds the whole row: its largest magnitude must be known before its first
value is written. The scale's divisor says which precision: E4M3's or INT8's largest value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pulid.flux.kernels.plain import E4M3, EPS, LARGEST, SMALLEST, Rows

# Added to a float32 below 2**22 and taken away again it leaves a whole number: the nearest, halves to even.
ROUNDING = tl.constexpr(1.5 * 2**23)


@triton.jit
def store_row(
    values, out, scales, row, column, inside,
    WIDTH: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    largest = tl.maximum(tl.max(tl.where(inside, tl.abs(values), 0.0), axis=0), SMALLEST)
    scale = largest / LARGEST
    fitted = values / scale
    if out.dtype.element_ty == tl.int8:
        fitted = (fitted + ROUNDING) - ROUNDING
    tl.store(out + row * WIDTH + column, fitted.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def modulated(values, scale, shift, column, inside, DIM: tl.constexpr, EPS: tl.constexpr):
    mean = tl.sum(values, axis=0) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / DIM + EPS)
    gain = 1.0 + tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    return centred / deviation * gain + bias


@triton.jit
def modulate_rows_kernel(
    x, scale, shift, out, scales,
    x_row, x_token, scale_row, shift_row, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    values = tl.load(x + row * x_row + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    result = modulated(values, scale + row * scale_row, shift + row * shift_row, column, inside, DIM, EPS)
    store_row(result, out, scales, row * tokens + token, column, inside, DIM, SMALLEST, LARGEST)


@triton.jit
def gated_modulate_rows_kernel(
    residual, gate, y, scale, shift, stream, out, scales,
    residual_row, residual_token, gate_row, y_row, y_token, scale_row, shift_row, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    kept = tl.load(
        residual + row * residual_row + token * residual_token + column, mask=inside, other=0.0
    ).to(tl.float32)
    factor = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + row * y_row + token * y_token + column, mask=inside, other=0.0).to(tl.float32)
    rounded = (kept + factor * added).to(stream.dtype.element_ty)
    here = row * tokens + token
    tl.store(stream + here * DIM + column, rounded, mask=inside)
    values = rounded.to(tl.float32)
    result = modulated(values, scale + row * scale_row, shift + row * shift_row, column, inside, DIM, EPS)
    store_row(result, out, scales, here, column, inside, DIM, SMALLEST, LARGEST)


@triton.jit
def beside_gelu_rows_kernel(
    attention, mlp, out, scales,
    attention_row, attention_token, mlp_row, mlp_token, tokens,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SMALLEST: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    left = column < DIM
    right = (column >= DIM) & (column < WIDTH)
    kept = tl.load(attention + row * attention_row + token * attention_token + column, mask=left, other=0.0)
    inner = tl.load(mlp + row * mlp_row + token * mlp_token + column - DIM, mask=right, other=0.0)
    x = inner.to(tl.float32)
    # (1 + tanh(u)) / 2 is the logistic function of 2u
    twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 * sqrt(2 / pi)
    both = tl.where(left, kept.to(tl.float32), x / (1.0 + tl.exp(-twice)))
    store_row(both, out, scales, row * tokens + token, column, left | right, WIDTH, SMALLEST, LARGEST)


def as_rows(x: Tensor, to: torch.dtype = E4M3) -> Rows:
    """As `plain.as_rows`, of (batch, tokens, D)."""
    return _beside_gelu_rows(x, x, to, kept=x.shape[-1], width=x.shape[-1])


def gelu_rows(x: Tensor, to: torch.dtype = E4M3) -> Rows:
    """As `plain.gelu_rows`."""
    return _beside_gelu_rows(x, x, to, kept=0, width=x.shape[-1])


def beside_gelu_rows(attention: Tensor, mlp: Tensor, to: torch.dtype = E4M3) -> Rows:
    """As `plain.beside_gelu_rows`. `mlp` may lie in the packed projections."""
    kept = attention.shape[-1]
    return _beside_gelu_rows(attention, mlp, to, kept=kept, width=kept + mlp.shape[-1])


def _beside_gelu_rows(attention: Tensor, mlp: Tensor, to: torch.dtype, *, kept: int, width: int) -> Rows:
    batch, tokens, _ = attention.shape
    out = _empty_rows(batch, tokens, width, to, attention.device)
    beside_gelu_rows_kernel[(tokens, batch)](
        attention, mlp, *out,
        attention.stride(0), attention.stride(1), mlp.stride(0), mlp.stride(1), tokens,
        DIM=kept, WIDTH=width, BLOCK=triton.next_power_of_2(width), SMALLEST=SMALLEST, LARGEST=LARGEST[to],
        num_warps=16 if width > 8192 else 8,
    )  # fmt: skip
    return out


def modulate_rows(x: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype = E4M3) -> Rows:
    """As `plain.modulate_rows`. x may be a run of tokens within a longer sequence."""
    batch, tokens, dim = x.shape
    out = _empty_rows(batch, tokens, dim, to, x.device)
    modulate_rows_kernel[(tokens, batch)](
        x, scale, shift, *out,
        x.stride(0), x.stride(1), scale.stride(0), shift.stride(0), tokens,
        DIM=dim, BLOCK=triton.next_power_of_2(dim), EPS=EPS, SMALLEST=SMALLEST, LARGEST=LARGEST[to],
        num_warps=8,
    )  # fmt: skip
    return out


def gated_modulate_rows(
    residual: Tensor, gate: Tensor, y: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype = E4M3
) -> tuple[Tensor, Rows]:
    """As `plain.gated_modulate_rows`."""
    batch, tokens, dim = residual.shape
    stream = torch.empty((batch, tokens, dim), dtype=residual.dtype, device=residual.device)
    out = _empty_rows(batch, tokens, dim, to, residual.device)
    gated_modulate_rows_kernel[(tokens, batch)](
        residual, gate, y, scale, shift, stream, *out,
        residual.stride(0), residual.stride(1), gate.stride(0), y.stride(0), y.stride(1),
        scale.stride(0), shift.stride(0), tokens,
        DIM=dim, BLOCK=triton.next_power_of_2(dim), EPS=EPS, SMALLEST=SMALLEST, LARGEST=LARGEST[to],
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return stream, out


def _empty_rows(batch: int, tokens: int, width: int, to: torch.dtype, device: torch.device) -> Rows:
    return Rows(
        torch.empty((batch, tokens, width), dtype=to, device=device),
        torch.empty((batch, tokens, 1), dtype=torch.float32, device=device),
    )
