"""A sheet that fills and outlines shapes the way a style does.

Two coordinate systems, both with y downwards: `head` units (origin between eyes and nose, 1 is half a face's
height) and `stage` units for what is behind (x in short sides from the middle, y from 0 at the top
to 1 at the bottom). Drawn larger than the picture and reduced, for smooth edges.
Does not know: what is drawn, or how a finished sheet is treated (`finish`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.drawing.colour import BLACK, WHITE, Colour, hexed, luma, mix, vivid

Points = npt.NDArray[np.float64]  # (n, 2)
Corners = list[tuple[float, float]]  # in pixels of the sheet
Bytes = tuple[int, int, int]
_BRIGHT = 0.85  # how much of a colour stays where nothing may be lost
_LARGE = 600 * 600  # pixels from which on edges are fine with less


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a style puts shapes down."""

    paper: Colour = WHITE
    cover: float = 1.0  # how much of a colour stays; the rest is paper
    far_cover: float = 1.0  # the same behind the person
    outline: float = 0.0  # width in head units
    ink: Colour | None = None  # of outlines; None: of the shape's own colour
    glows: bool = False
    tone: float = 1.0  # strength of shadows and highlights
    wobble: float = 0.0  # of a hand, in head units


LOOKS = {
    "flat": Look(tone=0.9),
    "comic": Look(outline=0.042, ink=hexed("16121c"), tone=1.35),
    "sketch": Look(
        paper=hexed("f8f4ea"),
        cover=0.56,
        far_cover=0.42,
        outline=0.026,
        ink=hexed("3a3840"),
        tone=0.9,
        wobble=0.012,
    ),
    "neon": Look(paper=hexed("0c0a1e"), cover=0.46, far_cover=0.26, outline=0.036, glows=True, tone=0.6),
    "watercolour": Look(
        paper=hexed("fdfaf2"), cover=0.86, far_cover=0.74, outline=0.014, tone=1.0, wobble=0.020
    ),
}


class Canvas:
    def __init__(self, width: int, height: int, style: str) -> None:
        self.look = LOOKS[style]
        self.scale = 2.0 if width * height <= _LARGE else 1.5
        self.size = (round(width * self.scale), round(height * self.scale))
        self.image = Image.new("RGB", self.size)
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        self._short = min(self.size)
        self._unit = 0.305 * self._short
        self._middle = (self.size[0] / 2, self.size[1] / 2 - 0.02 * self._short)

    def gradient(self, top: Colour, bottom: Colour, *, middle: Colour | None = None) -> None:
        """The whole sheet, from top to bottom."""
        stops = [top, bottom] if middle is None else [top, middle, bottom]
        column = np.array([[self._rgb(stop, far=True) for stop in stops]], np.uint8).transpose(1, 0, 2)
        ramp = Image.fromarray(np.ascontiguousarray(column)).resize(
            (1, self.size[1]), Image.Resampling.BICUBIC
        )
        self.image.paste(ramp.resize(self.size, Image.Resampling.NEAREST))

    def fill(self, points: Points, colour: Colour, *, line: bool = True, bright: bool = False) -> None:
        """A shape in head units, with the style's outline. Bright and exact where the style would dim it."""
        self._fill(
            self._head(points, not bright), self._rgb(colour, bright), self._inked(colour) if line else None
        )

    def fill_stage(self, points: Points, colour: Colour, *, line: bool = False) -> None:
        self._fill(
            self._stage(points), self._rgb(colour, far=True), self._inked(colour) if line else None, thin=0.6
        )

    def tone(self, points: Points, colour: Colour, strength: float) -> None:
        """A transparent shape in head units: shadow, highlight, blush. Never outlined."""
        self._draw.polygon(self._head(points, False), (*self._rgb(colour), self._alpha(strength)))

    def tone_stage(self, points: Points, colour: Colour, strength: float) -> None:
        self._draw.polygon(self._stage(points), (*self._rgb(colour, far=True), self._alpha(strength)))

    def line(self, points: Points, colour: Colour, width: float, strength: float = 1.0) -> None:
        """An open stroke in head units; as wide as asked, or as the style's pen."""
        colour = self._inked(colour) if self.look.outline else self._rgb(colour)
        width = max(width, 0.7 * self.look.outline) * self._unit
        alpha = round(255 * min(1.0, max(0.0, strength)))
        self._draw.line(self._head(points, True), (*colour, alpha), max(1, round(width)), joint="curve")

    def dot_stage(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A disc; its radius is in short sides."""
        centre, reach = self._stage(np.array([[x, y]])), radius * self._short
        (left, top) = centre[0]
        self._draw.ellipse(
            (left - reach, top - reach, left + reach, top + reach),
            (*self._rgb(colour, self.look.glows, True), 255),
        )

    def dot_head(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A disc in head units, outlined."""
        self.fill(ellipse(x, y, radius, radius, 20), colour)

    def reduced(self, width: int, height: int) -> Image.Image:
        if self.scale == 2:
            return self.image.reduce(2)
        return self.image.resize((width, height), Image.Resampling.BILINEAR)

    def _fill(self, corners: Corners, inside: Bytes, edge: Bytes | None, thin: float = 1.0) -> None:
        self._draw.polygon(corners, (*inside, 255))
        if edge and self.look.outline:
            width = max(1, round(self.look.outline * self._unit * thin))
            self._draw.line([*corners, corners[0]], (*edge, 255), width, joint="curve")

    def _head(self, points: Points, wobble: bool) -> Corners:
        if wobble and self.look.wobble:
            points = points + self.look.wobble * np.sin(points[:, ::-1] * 9 + points * 4)
        return [*map(tuple, (points * self._unit + self._middle).tolist())]

    def _stage(self, points: Points) -> Corners:
        placed = points * (self._short, self.size[1]) + (self.size[0] / 2, 0)
        return [*map(tuple, placed.tolist())]

    def _inked(self, colour: Colour) -> Bytes:
        if self.look.glows:
            return _bytes(vivid(colour))
        return _bytes(self.look.ink or mix(colour, BLACK, 0.4))

    def _rgb(self, colour: Colour, bright: bool = False, far: bool = False) -> Bytes:
        cover = self.look.far_cover if far else self.look.cover
        if bright:
            cover = max(cover, _BRIGHT)
        if self.look.glows and not bright:  # or light areas would drown the lines
            colour = mix(colour, BLACK, 0.3 * luma(colour))
        return _bytes(mix(self.look.paper, colour, cover))

    def _alpha(self, strength: float) -> int:
        return round(255 * min(1.0, max(0.0, strength * self.look.tone)))


def _bytes(colour: Colour) -> Bytes:
    red, green, blue = (round(255 * min(1.0, max(0.0, part))) for part in colour)
    return red, green, blue


def smooth(corners: list[tuple[float, float]], *, closed: bool = True) -> Points:
    """A Catmull-Rom spline through the corners."""
    curve: Points = _spline(len(corners), closed) @ np.array(corners)
    return curve


@lru_cache(maxsize=64)
def _spline(corners: int, closed: bool, steps: int = 6) -> npt.NDArray[np.float64]:
    """(points, corners): what each corner adds to each point of the curve."""
    t = np.arange(steps)[:, None] / steps
    weights = 0.5 * np.concatenate(
        (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3), axis=1
    )
    segments = corners if closed else corners - 1
    basis = np.zeros((segments * steps + (not closed), corners))
    for segment in range(segments):
        for offset in range(4):
            corner = segment + offset - 1
            corner = corner % corners if closed else min(max(corner, 0), corners - 1)
            basis[segment * steps : (segment + 1) * steps, corner] += weights[:, offset]
    if not closed:
        basis[-1, -1] = 1.0
    return basis


def mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A closed outline from its right half, top to bottom; both ends lie on the axis."""
    return right + [(-x, y) for x, y in right[-2:0:-1]]


@lru_cache(maxsize=16)
def _circle(count: int) -> Points:
    turn = np.arange(count) * (2 * np.pi / count)
    return np.stack((np.cos(turn), np.sin(turn)), axis=1)


def ellipse(x: float, y: float, across: float, down: float, count: int = 28) -> Points:
    """Radii `across` and `down`."""
    return _circle(count) * (across, down) + (x, y)


def turned(points: Points, x: float, y: float, angle: float) -> Points:
    """About (x, y), by an angle in radians, clockwise on the screen."""
    cos, sin = np.cos(angle), np.sin(angle)
    found: Points = (points - (x, y)) @ np.array(((cos, sin), (-sin, cos))) + (x, y)
    return found


def shifted(points: Points, y: float) -> Points:
    """Down by `y`."""
    found: Points = points + np.array((0.0, y))
    return found
