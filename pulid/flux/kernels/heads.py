"""Query, key and value for attention, out of projections that lie side by side.

One program for each token and each of query, key and value: all its heads at once, normed, turned and
written where attention reads them. Values are copied, and only where text and image must be joined.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pulid.flux.kernels.plain import EPS


@triton.jit
def heads_kernel(
    packed, norm_q, norm_k, cos, sin, out,
    packed_row, packed_token, out_part, out_row, first,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HEADS_BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    token, row, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    channel = tl.arange(0, SIZE)[None, :]
    column = head * SIZE + channel
    inside = (head < HEADS) & (channel < SIZE)
    place = first + token  # in the joint sequence, and in the tables
    source = packed + row * packed_row + token * packed_token + part * HEADS * SIZE + column
    target = out + part * out_part + row * out_row + place.to(tl.int64) * HEADS * SIZE + column
    raw = tl.load(source, mask=inside, other=0.0)
    if part < 2:
        values = raw.to(tl.float32)
        mean_square = tl.sum(values * values, axis=1) / SIZE
        of_query, of_key = tl.load(norm_q + channel).to(tl.float32), tl.load(norm_k + channel).to(tl.float32)
        normed = values / tl.sqrt(mean_square + EPS)[:, None] * tl.where(part == 0, of_query, of_key)
        pair = place * SIZE + 2 * tl.arange(0, SIZE // 2)[None, :]  # both channels of a pair turn alike
        c, s = tl.load(cos + pair), tl.load(sin + pair)
        even, odd = tl.split(tl.reshape(normed, (HEADS_BLOCK, SIZE // 2, 2)))
        turned = tl.join(even * c - odd * s, odd * c + even * s)
        turned = tl.reshape(turned, (HEADS_BLOCK, SIZE))
        tl.store(target, turned.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(target, raw, mask=inside)


def own_heads(
    packed: Tensor, norm_q: Tensor, norm_k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.own_heads`. The values stay where they are."""
    batch, tokens, width = packed.shape
    size = norm_q.shape[0]
    heads = width // (3 * size)
    out = torch.empty((2, batch, tokens, heads, size), dtype=packed.dtype, device=packed.device)
    _launch(packed, norm_q, norm_k, cos, sin, out, first=0)
    value = packed[..., 2 * heads * size :].unflatten(-1, (heads, size))
    return out[0].transpose(1, 2), out[1].transpose(1, 2), value.transpose(1, 2)


def joint_heads(
    text: Tensor,
    image: Tensor,
    text_norms: tuple[Tensor, Tensor],
    image_norms: tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.joint_heads`."""
    batch, length, width = text.shape
    size = text_norms[0].shape[0]
    shape = (3, batch, length + image.shape[1], width // (3 * size), size)
    out = torch.empty(shape, dtype=text.dtype, device=text.device)
    _launch(text, *text_norms, cos, sin, out, first=0)
    _launch(image, *image_norms, cos, sin, out, first=length)
    return out[0].transpose(1, 2), out[1].transpose(1, 2), out[2].transpose(1, 2)


def _launch(
    packed: Tensor, norm_q: Tensor, norm_k: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, first: int
) -> None:
    """Write the tokens of `packed` into `out` (parts, B, S, H, E) from token `first` on."""
    parts, batch, _, heads, size = out.shape
    heads_kernel[(packed.shape[1], batch, parts)](
        packed, norm_q, norm_k, cos, sin, out,
        packed.stride(0), packed.stride(1), out.stride(0), out.stride(1), first,
        HEADS=heads, SIZE=size, HEADS_BLOCK=triton.next_power_of_2(heads), EPS=EPS, num_warps=8,
    )  # fmt: skip
