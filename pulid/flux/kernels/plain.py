"""What each kernel computes, in torch: the definition, the form on the CPU, and the fallback.

Everything is computed in float32 and rounded once, at the end; diffusers rounds after every step.
A compiler that fuses these gives the same. Knows no blocks and no weights.

Names that end in _rows are the same pieces for a linear in eight bits: what leaves them is quantised, each
token by a scale of its own, from the float32 result and not from one that was rounded before. They take the
precision of the values last: E4M3, or INT8 for cards without that.

Shapes: batch B, tokens S, width D, heads H of size E each. Modulation vectors are (B, D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of all of FLUX's norms
E4M3 = torch.float8_e4m3fn
INT8 = torch.int8
LARGEST = {E4M3: 448.0, INT8: 127.0}  # magnitude that each can have; of int8 as much on both sides
SMALLEST = 1e-12  # largest magnitude that a row is taken to have at least: a row of zeros stays one


class Rows(NamedTuple):
    """A matrix whose rows are values * scale: activations by token, weights by output."""

    values: Tensor  # (..., D), e4m3 or int8
    scale: Tensor  # (..., 1), float32


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without affine, times 1 + scale, plus shift. (B, S, D) -> (B, S, D)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=EPS)
    return (normed * (1 + scale.float())[:, None] + shift.float()[:, None]).to(x.dtype)


def gated(residual: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """residual + gate * y. (B, S, D) -> (B, S, D)."""
    return (residual.float() + gate.float()[:, None] * y.float()).to(residual.dtype)


def gated_modulate(
    residual: Tensor, gate: Tensor, y: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`gated`, and `modulate` of it. (B, S, D) -> twice (B, S, D)."""
    x = gated(residual, gate, y)
    return x, modulate(x, scale, shift)


def own_heads(
    packed: Tensor, norm_q: Tensor, norm_k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one stream, each (B, H, S, E), from projections (B, S, 3D) side by side.

    Query and key are RMS-normed per head and turned by cos and sin (S, E), pairs of channels each.
    In memory tokens come before heads, so that attention's result is (B, S, D) without a copy.
    """
    query, key, value = packed.unflatten(-1, (3, -1, norm_q.shape[0])).unbind(2)
    return (
        _turned(query, norm_q, cos, sin).transpose(1, 2),
        _turned(key, norm_k, cos, sin).transpose(1, 2),
        value.transpose(1, 2),
    )


def joint_heads(
    text: Tensor,
    image: Tensor,
    text_norms: tuple[Tensor, Tensor],
    image_norms: tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `own_heads`, of text tokens and image tokens in that order, with norms of their own."""
    length = text.shape[1]
    of_text = own_heads(text, *text_norms, cos[:length], sin[:length])
    of_image = own_heads(image, *image_norms, cos[length:], sin[length:])
    query, key, value = (
        torch.cat((a.transpose(1, 2), b.transpose(1, 2)), dim=1).transpose(1, 2)
        for a, b in zip(of_text, of_image, strict=True)
    )
    return query, key, value


def _turned(x: Tensor, norm: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, S, H, E) -> the same."""
    normed = F.rms_norm(x.float(), (x.shape[-1],), norm.float(), EPS)
    even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (normed * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def beside_gelu(attention: Tensor, mlp: Tensor) -> Tensor:
    """Attention (B, S, D), and tanh-GELU of the MLP's inner states (B, S, M) beside it: (B, S, D + M)."""
    return torch.cat((attention, gelu(mlp)), dim=-1)


def head_softmax(scores: Tensor, offset: Tensor, heads: int) -> Tensor:
    """Softmax of scores + offset within each head.

    scores (G, S, heads * n), offset (G, 1, heads * n) float32 -> as scores.
    """
    shifted = (scores.float() + offset).unflatten(-1, (heads, -1))
    return shifted.softmax(dim=-1).flatten(-2).to(scores.dtype)


def as_input(x: Tensor) -> Tensor:
    """What a linear takes: without gaps in memory."""
    return x.contiguous()


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU. (B, S, M) -> the same."""
    return F.gelu(x, approximate="tanh")


# ---- for linears in eight bits ----


def as_rows(x: Tensor, to: torch.dtype = E4M3) -> Rows:
    """Quantised so that the largest magnitude of each row is the precision's. (..., D) -> rows."""
    exact = x.float()
    scale = exact.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST) / LARGEST[to]
    fitted = exact / scale
    return Rows((fitted if to.is_floating_point else fitted.round()).to(to), scale)


def modulate_rows(x: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype = E4M3) -> Rows:
    """`modulate`, quantised."""
    return as_rows(modulate(x.float(), scale, shift), to)


def gated_modulate_rows(
    residual: Tensor, gate: Tensor, y: Tensor, scale: Tensor, shift: Tensor, to: torch.dtype = E4M3
) -> tuple[Tensor, Rows]:
    """`gated`, and `modulate_rows` of it."""
    x = gated(residual, gate, y)
    return x, modulate_rows(x, scale, shift, to)


def gelu_rows(x: Tensor, to: torch.dtype = E4M3) -> Rows:
    """`gelu`, quantised."""
    return as_rows(gelu(x.float()), to)


def beside_gelu_rows(attention: Tensor, mlp: Tensor, to: torch.dtype = E4M3) -> Rows:
    """`beside_gelu`, quantised."""
    return as_rows(beside_gelu(attention.float(), mlp.float()), to)


def int8_linear(x: Rows, weight: Rows, bias: Tensor) -> Tensor:
    """(..., in) rows and (out, in) rows, both int8 -> (..., out), in the bias's precision.

    The product is one of whole numbers, and exact. On a card it takes more than 16 rows.
    """
    *outer, width = x.values.shape
    product = torch._int_mm(x.values.reshape(-1, width), weight.values.t())
    result = product.float() * x.scale.reshape(-1, 1) * weight.scale.reshape(1, -1) + bias.float()
    return result.to(bias.dtype).unflatten(0, outer)
