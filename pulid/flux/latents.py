"""Latents: from a seed to packed noise, from packed latents back to a grid, and from pictures to bytes.

Sizes are pixels at the border and are rounded up to multiples of 16: one image token is a cell of
2x2 latents, each of 8x8 pixels. Source: docs/spec/PULID_SPEC.md, sections 7.1 and 7.6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pulid.engine import RgbImage

PIXELS_PER_TOKEN = 16


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of image tokens for a size in pixels, rounded up."""
    return -(-height // PIXELS_PER_TOKEN), -(-width // PIXELS_PER_TOKEN)


def draw_noise(
    seed: int, height: int, width: int, *, channels: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(1, channels, 2 rows, 2 columns), one draw in `dtype` from a generator of `device`.

    The CPU's and CUDA's generators give different streams for one seed, as in the reference.
    """
    rows, columns = token_grid(height, width)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn((1, channels, 2 * rows, 2 * columns), generator=generator, dtype=dtype, device=device)


def pack(latents: Tensor) -> Tensor:
    """(batch, c, 2 rows, 2 columns) -> (batch, rows * columns, 4c); a token holds (c, dy, dx)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a size in pixels, in float32."""
    rows, columns = token_grid(height, width)
    grid = packed.float().transpose(1, 2).unflatten(2, (rows, columns))
    return torch.nn.functional.pixel_shuffle(grid, 2)


def image_ids(height: int, width: int, device: torch.device, *, tokens_across: float | None = None) -> Tensor:
    """(rows * columns, 3) float32: 0, row, column of each image token.

    With `tokens_across` rows and columns count from the picture's middle, and so that its shorter side has
    that many, whatever its size.
    """
    rows, columns = token_grid(height, width)
    down, across = torch.arange(rows).float(), torch.arange(columns).float()
    if tokens_across is not None:
        scale = tokens_across / min(rows, columns)
        down, across = (down - (rows - 1) / 2) * scale, (across - (columns - 1) / 2) * scale
    return torch.cartesian_prod(torch.zeros(1), down, across).to(device)


def text_ids(tokens: int, device: torch.device) -> Tensor:
    """(tokens, 3) float32 zeros: text has no place in the picture."""
    return torch.zeros(tokens, 3, device=device)


def to_uint8(pictures: Tensor) -> tuple[RgbImage, ...]:
    """(batch, 3, h, w) around [-1, 1] -> uint8 (h, w, 3) each: clamp, scale in the given dtype, truncate."""
    levels = (127.5 * (pictures.clamp(-1, 1) + 1)).to(torch.uint8)
    return tuple(levels.permute(0, 2, 3, 1).cpu().numpy())
