"""Where on the canvas a person is, as one weight for each image token.

The canvas is the grid of image tokens (16x16 pixels each), stretched over the whole picture. A weight
is the share of the token's area that lies inside: 1 well inside, 0 outside, and exactly 0 there, so
that what is multiplied by it vanishes. Pure numpy. Does not know: people, tensors, pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pulid.engine import Box, Region
from pulid.errors import BadRequest

Weights = npt.NDArray[np.float64]

_EDGE_DECIMALS = 9  # of a token: 0.7 of ten tokens are seven, not 7.000000000000001


def check_region(region: Region) -> None:
    """Raises BadRequest for a box without an inside and for anything that is no mask."""
    if isinstance(region, Box):
        if not (0 <= region.left < region.right <= 1 and 0 <= region.top < region.bottom <= 1):
            raise BadRequest(
                "A box is left, top, right, bottom in fractions of the canvas: 0 to 1, left before right"
                " and top before bottom."
            )
    elif region.weights.ndim != 2 or region.weights.dtype != np.uint8 or region.weights.size == 0:
        raise BadRequest("A mask is one channel of levels from 0 to 255, of at least one pixel.")


def token_weights(region: Region, rows: int, columns: int) -> Weights:
    """(rows * columns,) from 0 to 1: of a box the covered area, of a mask the mean level."""
    if isinstance(region, Box):
        down = covered(_in_tokens(region.top, region.bottom, rows), rows)
        across = covered(_in_tokens(region.left, region.right, columns), columns)
        return (down @ across.T).ravel()
    height, width = region.weights.shape
    down = covered(np.arange(height + 1) * rows / height, rows)
    across = covered(np.arange(width + 1) * columns / width, columns)
    return (down @ (region.weights / 255) @ across.T).ravel()


def _in_tokens(start: float, end: float, tokens: int) -> Weights:
    return np.round(np.array([start, end]) * tokens, _EDGE_DECIMALS)


def covered(edges: Weights, tokens: int) -> Weights:
    """(tokens, n): how much of each token lies in each of the n intervals between n + 1 edges, in tokens."""
    starts = np.arange(tokens)[:, None]
    return (np.minimum(starts + 1, edges[1:]) - np.maximum(starts, edges[:-1])).clip(0)
