"""A picture decoded in overlapping tiles of one size, so that a decoder needs the memory of one tile.

Tiles lie evenly, each as large as the others: a small rest at an edge would have statistics of its own
in the decoder's norms. Where they overlap one fades into the other. Still a tile knows less of the picture
than the whole does, so pixels differ; docs/profiles.md says by how much.

Knows: latents and pixels. Does not know: decoders, precisions, which pictures are large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

PIXELS = 8  # of a latent cell's side
OVERLAP = 16  # latent cells, at least


def decoded_in_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, side: int) -> Tensor:
    """(batch, c, h, w) -> what `decode` makes of it, (batch, 3, 8h, 8w); `side` of a tile in latent cells."""
    batch, _, height, width = latents.shape
    tile = min(height, side), min(width, side)
    weight = fade(tile, latents.device)
    picture = latents.new_zeros((batch, 3, PIXELS * height, PIXELS * width), dtype=torch.float32)
    total = torch.zeros_like(picture[:1, :1])
    for top, left in itertools.product(starts(height, side), starts(width, side)):
        cells = latents[..., top : top + tile[0], left : left + tile[1]]
        where = ..., pixels(top, tile[0]), pixels(left, tile[1])
        picture[where] += decode(cells.contiguous()).float() * weight
        total[where] += weight
    return picture.div_(total)


def pixels(start: int, length: int) -> slice:
    """Of latent cells."""
    return slice(PIXELS * start, PIXELS * (start + length))


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin that cover `length` cells: as few as there can be, and evenly."""
    if length <= side:
        return [0]
    more = -(-(length - side) // (side - OVERLAP))
    return [round(number * (length - side) / more) for number in range(more + 1)]


def fade(tile: tuple[int, int], device: torch.device) -> Tensor:
    """(1, 1, 8 h, 8 w): 1 in the middle of a tile, and less towards each edge, but never 0."""
    down, across = (_ramp(PIXELS * length, device) for length in tile)
    return (down[:, None] * across)[None, None]


def _ramp(length: int, device: torch.device) -> Tensor:
    place = torch.arange(length, device=device) + 0.5
    return (torch.minimum(place, length - place) / (PIXELS * OVERLAP)).clamp(max=1)
