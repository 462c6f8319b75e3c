"""Random inputs for each kernel, lying in memory as the block loop lays them out.

For the check on first use and for tests. Token counts are odd on purpose: no size of a block fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pulid.flux.kernels.plain import INT8, as_rows


@dataclass(frozen=True, slots=True)
class Sizes:
    """What inputs are drawn for."""

    heads: int = 24
    head_dim: int = 128
    batch: int = 2
    text: int = 5  # tokens
    image: int = 37  # tokens
    identity_heads: int = 16
    identity_tokens: int = 32

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Draw:
    """Normal numbers from one seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 1) -> None:
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers everywhere
        self._device, self._dtype = device, dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device, dtype or self._dtype)


def _modulate(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    shift, scale, *_ = _modulation(draw, sizes)
    return _image(draw, sizes), scale, shift


def _gated(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    _, _, gate, *_ = _modulation(draw, sizes)
    return _image(draw, sizes), gate, _image(draw, sizes)


def _gated_modulate(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    _, _, gate, shift, scale, _ = _modulation(draw, sizes)
    return _image(draw, sizes), gate, _image(draw, sizes), scale, shift


def _own_heads(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    packed = draw(sizes.batch, sizes.image, 7 * sizes.width)[..., : 3 * sizes.width]
    return packed, *_norms(draw, sizes), *_tables(draw, sizes, sizes.image)


def _joint_heads(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    text = draw(sizes.batch, sizes.text, 3 * sizes.width)
    image = draw(sizes.batch, sizes.image, 3 * sizes.width)
    tables = _tables(draw, sizes, sizes.text + sizes.image)
    return text, image, _norms(draw, sizes), _norms(draw, sizes), *tables


def _beside_gelu(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    packed = draw(sizes.batch, sizes.image, 7 * sizes.width)
    return draw(sizes.batch, sizes.image, sizes.width), packed[..., 3 * sizes.width :]


def _head_softmax(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    width = sizes.identity_heads * sizes.identity_tokens
    scores = 3 * draw(sizes.batch, sizes.image, width)
    return scores, draw(sizes.batch, 1, width, dtype=torch.float32), sizes.identity_heads


def _as_rows(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    return (_image(draw, sizes),)


def _gelu_rows(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    return (draw(sizes.batch, sizes.image, 4 * sizes.width),)


def _int8_linear(draw: Draw, sizes: Sizes) -> tuple[Any, ...]:
    """So many tokens that programs form more than one group."""
    x, weight = draw(sizes.batch, 40 * sizes.image, sizes.width), draw(sizes.width + 8, sizes.width)
    return as_rows(x, INT8), as_rows(weight, INT8), draw(len(weight))


SAMPLES: dict[str, Callable[[Draw, Sizes], tuple[Any, ...]]] = {
    "modulate": _modulate,
    "gated": _gated,
    "gated_modulate": _gated_modulate,
    "own_heads": _own_heads,
    "joint_heads": _joint_heads,
    "beside_gelu": _beside_gelu,
    "head_softmax": _head_softmax,
    "as_rows": _as_rows,
    "modulate_rows": _modulate,
    "gated_modulate_rows": _gated_modulate,
    "gelu_rows": _gelu_rows,
    "beside_gelu_rows": _beside_gelu,
    "int8_linear": _int8_linear,
}


def _image(draw: Draw, sizes: Sizes) -> Tensor:
    """The image's run of tokens within a joint sequence, off centre as a residual stream is."""
    return (draw(sizes.batch, sizes.text + sizes.image, sizes.width) + 0.5)[:, sizes.text :]


def _modulation(draw: Draw, sizes: Sizes) -> tuple[Tensor, ...]:
    """Neighbours within a row of the table."""
    return draw(sizes.batch, 6 * sizes.width).chunk(6, dim=-1)


def _norms(draw: Draw, sizes: Sizes) -> tuple[Tensor, Tensor]:
    return draw(sizes.head_dim), draw(sizes.head_dim)


def _tables(draw: Draw, sizes: Sizes, tokens: int) -> tuple[Tensor, Tensor]:
    """cos and sin (tokens, head_dim), each value for a pair of channels."""
    angles = draw(tokens, sizes.head_dim // 2, dtype=torch.float32).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()
