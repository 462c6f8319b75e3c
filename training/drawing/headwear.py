"""What a prompt puts on a head, in head units. Drawers get the face's half width and the hair's volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from training.drawing.canvas import Canvas, ellipse, mirrored, shifted, smooth
from training.drawing.colour import BLACK, WHITE, hexed, mix

_FELT = hexed("5a3c2c")
_WOOL = hexed("c8443c")
_GOLD = hexed("f0b428")
_CLOTH = hexed("4a3a9a")
_SHELL = hexed("eceff4")


def nothing(canvas: Canvas, half: float, volume: float) -> None:
    """A bare head."""


def hat(canvas: Canvas, half: float, volume: float) -> None:
    reach, top = half + 0.5 * volume, -1.30 - 0.6 * volume
    crown = [(0, top + 0.05), (0.30, top - 0.02), (0.92 * reach, top + 0.14), (reach, -0.70), (0, -0.62)]
    canvas.fill(smooth(mirrored(crown)), _FELT)
    band = [(0, -0.86), (0.99 * reach, -0.88), (1.01 * reach, -0.70), (0, -0.64)]
    canvas.fill(smooth(mirrored(band)), mix(_FELT, BLACK, 0.55))
    brim = [
        (0, -0.74),
        (reach, -0.78),
        (1.75 * reach, -0.80),
        (1.5 * reach, -0.62),
        (0.8 * reach, -0.56),
        (0, -0.54),
    ]
    canvas.fill(smooth(mirrored(brim)), mix(_FELT, WHITE, 0.10))


def beanie(canvas: Canvas, half: float, volume: float) -> None:
    reach, top = half + 0.55 * volume, -1.14 - volume
    dome = [(0, top - 0.06), (0.6 * reach, top + 0.10), (1.02 * reach, -0.72), (reach, -0.50), (0, -0.46)]
    canvas.dot_head(0, top - 0.10, 0.15, WHITE)
    canvas.fill(smooth(mirrored(dome)), _WOOL)
    cuff = [
        (0, -0.76),
        (0.7 * reach, -0.74),
        (1.05 * reach, -0.66),
        (1.03 * reach, -0.40),
        (0.5 * reach, -0.43),
        (0, -0.44),
    ]
    canvas.fill(smooth(mirrored(cuff)), mix(_WOOL, BLACK, 0.22))
    for x in np.linspace(-0.8, 0.8, 9):
        rib = np.array([(x * reach, -0.70), (x * reach, -0.48)])
        canvas.line(rib, mix(_WOOL, BLACK, 0.45), 0.016, 0.6)


def crown(canvas: Canvas, half: float, volume: float) -> None:
    reach, base = 0.82 * half + 0.3 * volume, -0.80 - 0.5 * volume
    spikes = [
        (-reach, base),
        (-1.12 * reach, base - 0.52),
        (-0.55 * reach, base - 0.25),
        (0, base - 0.66),
        (0.55 * reach, base - 0.25),
        (1.12 * reach, base - 0.52),
        (reach, base),
    ]
    rim = smooth([(reach, base), (0, base + 0.09), (-reach, base)], closed=False)
    canvas.fill(np.concatenate((np.array(spikes), rim)), _GOLD)
    canvas.line(shifted(rim, -0.09), mix(_GOLD, BLACK, 0.35), 0.03)
    for x, y in ((-1.12 * reach, -0.52), (0, -0.66), (1.12 * reach, -0.52)):
        canvas.dot_head(x, base + y, 0.075, mix(_GOLD, WHITE, 0.35))
    for x, colour in ((-0.55, "d03048"), (0.0, "3070d0"), (0.55, "30a060")):
        canvas.dot_head(x * reach, base - 0.14 + 0.06 * (x == 0), 0.075, hexed(colour))


def wizard(canvas: Canvas, half: float, volume: float) -> None:
    reach, top = half + 0.5 * volume, -2.05 - 0.4 * volume
    cone = smooth(
        [
            (-reach, -0.68),
            (-0.62 * reach, -1.15),
            (-0.22 * reach, -1.65),
            (0.18, top),
            (0.30, top + 0.12),
            (0.36 * reach, -1.60),
            (0.68 * reach, -1.15),
            (reach, -0.68),
            (0, -0.58),
        ]
    )
    canvas.fill(cone, _CLOTH)
    brim = [(0, -0.78), (reach, -0.80), (1.72 * reach, -0.68), (1.3 * reach, -0.56), (0, -0.50)]
    canvas.fill(smooth(mirrored(brim)), mix(_CLOTH, BLACK, 0.25))
    for x, y, size in ((-0.30, -0.98, 0.085), (0.28, -1.18, 0.10), (-0.06, -1.50, 0.07), (0.5, -0.92, 0.06)):
        canvas.fill(_star(x * reach / 0.8, y, size), hexed("ffe27a"), line=False)


def helmet(canvas: Canvas, half: float, volume: float) -> None:
    """An astronaut's, visor open: a shell around head and hair."""
    reach = half + 0.34
    outer, inner = ellipse(0, -0.10, 1.26 * reach, 1.52, 48), ellipse(0, -0.02, 1.0 * reach, 1.18, 48)
    ring = np.concatenate((outer, outer[:1], inner[:1], inner[::-1]))
    canvas.fill(ring, _SHELL, line=False)
    for edge in (outer, inner):
        canvas.line(np.concatenate((edge, edge[:2])), hexed("8c94a4"), 0.035)
    shade = np.concatenate((outer[:25], inner[24::-1]))
    canvas.tone(shade, hexed("30405c"), 0.16)
    for side in (-1, 1):
        canvas.fill(ellipse(side * 1.22 * reach, 0.08, 0.13, 0.24), hexed("e0603c"))
    glare = smooth(
        [(-0.70 * reach, -0.62), (-0.34 * reach, -0.98), (-0.22 * reach, -0.94), (-0.58 * reach, -0.55)]
    )
    canvas.tone(glare, WHITE, 0.55)


def _star(x: float, y: float, size: float) -> np.ndarray:
    star = ellipse(x, y, size, size, 10)
    star[1::2] = (star[1::2] - (x, y)) * 0.42 + (x, y)
    return star


Drawer = Callable[[Canvas, float, float], None]
HATS: Mapping[str, Drawer] = {
    "none": nothing,
    "hat": hat,
    "beanie": beanie,
    "crown": crown,
    "wizard": wizard,
    "helmet": helmet,
}
