"""Colours as three floats in [0, 1], and the palettes of people. Does not know shapes or styles."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

Colour = tuple[float, float, float]

BLACK: Colour = (0.0, 0.0, 0.0)
WHITE: Colour = (1.0, 1.0, 1.0)

_SKIN = ("fcdcc6", "f4c8a6", "e2ac82", "c48c62", "9c6848", "744a34")
_HAIR = ("2a2226", "48302a", "744a32", "a06e44", "c89a5c", "e8cc94")
_EYES = ("402818", "70441e", "827032", "508048", "3c84a4", "7ab0d4")


def hexed(code: str) -> Colour:
    """`code` is six hexadecimal digits."""
    return (int(code[0:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:6], 16) / 255)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other."""
    return (
        one[0] + (other[0] - one[0]) * share,
        one[1] + (other[1] - one[1]) * share,
        one[2] + (other[2] - one[2]) * share,
    )


def luma(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def vivid(colour: Colour, *, least: float = 0.75) -> Colour:
    """The same hue, glowing."""
    hue, _, saturation = colorsys.rgb_to_hls(*colour)
    return colorsys.hls_to_rgb(hue, 0.62, max(least, saturation))


def along(stops: Sequence[str], place: float) -> Colour:
    """`place` in [-1, 1], from the first stop to the last."""
    exact = (min(max(place, -1.0), 1.0) + 1) / 2 * (len(stops) - 1)
    first = min(int(exact), len(stops) - 2)
    return mix(hexed(stops[first]), hexed(stops[first + 1]), exact - first)


def skin_colour(tone: float, warmth: float) -> Colour:
    base = along(_SKIN, tone)
    level = luma(base)
    goal = (
        (0.50 + 0.55 * level, 0.52 * level, 0.60 * level)
        if warmth > 0
        else (0.98 * level, level, 0.46 * level)
    )
    return mix(base, goal, 0.40 * abs(warmth))


def hair_colour(lightness: float, warmth: float, tint: float, gray: float) -> Colour:
    """`gray` in [0, 1]."""
    colour = along(_HAIR, lightness)
    level = luma(colour)
    if warmth > 0:
        colour = mix(colour, (0.42 + 0.70 * level, 0.10 + 0.5 * level, 0.02 + 0.1 * level), 0.95 * warmth)
    else:
        colour = mix(colour, (level * 0.88, level * 0.96, level * 1.16), -0.95 * warmth)
    goal = hexed("d04890") if tint > 0 else hexed("2090a8")
    goal = mix(goal, WHITE, max(0.0, level - 0.3))
    colour = mix(colour, goal, 0.9 * abs(tint) ** 1.25)
    return mix(colour, hexed("c4c4ca"), 0.7 * gray)


def eye_colour(place: float) -> Colour:
    return along(_EYES, place)


def clothes_colour(red: float, gold: float) -> Colour:
    """A disc of colours around gray; opposite corners are complementary."""
    hue = math.atan2(gold, red) / (2 * math.pi) % 1
    strength = min(1.0, math.hypot(red, gold))
    return mix((0.58, 0.58, 0.62), colorsys.hls_to_rgb(hue, 0.47, 0.76), strength**0.6)
