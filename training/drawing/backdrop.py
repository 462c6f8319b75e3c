"""The scenery behind a person, one function per setting, in stage units (`canvas`).

Every setting is the same picture each time: what varies in a portrait is the person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from training.drawing.canvas import Canvas, Points, smooth
from training.drawing.colour import BLACK, WHITE, Colour, hexed, mix

_SIDE = 1.7  # short sides from the middle that scenery reaches; more than the widest picture


def studio(canvas: Canvas) -> None:
    canvas.gradient(hexed("7f9bb0"), hexed("c8d4d8"))
    for reach in np.linspace(0.78, 0.36, 10):
        canvas.tone_stage(_blob(0, 0.46, reach, reach), hexed("fff4e4"), 0.045)


def beach(canvas: Canvas) -> None:
    canvas.gradient(hexed("58b4e6"), hexed("d8f0f4"))
    canvas.dot_stage(0.36, 0.16, 0.085, hexed("fff0a8"))
    _clouds(canvas, WHITE, 0.75)
    canvas.fill_stage(_below(0.56, 0.0), hexed("2890b8"))
    canvas.fill_stage(_below(0.64, 0.006), hexed("50b8cc"))
    canvas.fill_stage(_below(0.72, 0.012), hexed("eef8f4"))
    canvas.fill_stage(_below(0.735, 0.014), hexed("f0d8a0"))
    _palm(canvas, -0.47, 0.20)


def forest(canvas: Canvas) -> None:
    canvas.gradient(hexed("dcecb4"), hexed("8cb878"))
    for count, base, tall, width, colour in (
        (15, 0.74, 0.66, 0.13, "8cb48c"),
        (11, 0.86, 0.72, 0.18, "4f8c62"),
        (8, 1.06, 0.84, 0.26, "27593f"),
    ):
        for number, x in enumerate(np.linspace(-_SIDE, _SIDE, count)):
            _fir(
                canvas,
                x + 0.03 * (number % 3),
                base,
                tall * (0.86 + 0.09 * (number * 7 % 4)),
                width,
                hexed(colour),
            )
    canvas.fill_stage(_below(0.90, 0.02), hexed("3c7040"))


def night(canvas: Canvas) -> None:
    canvas.gradient(hexed("0a0f2e"), hexed("3a4680"))
    _stars(canvas, 46, 0.75)
    canvas.dot_stage(0.35, 0.17, 0.105, hexed("f8f0cc"))
    canvas.dot_stage(0.305, 0.15, 0.092, hexed("161c44"))
    _hills(canvas, 0.74, 0.05, hexed("1c2450"))
    _hills(canvas, 0.84, 0.04, hexed("0e1434"))


def city(canvas: Canvas) -> None:
    canvas.gradient(hexed("f0a878"), hexed("f8e0c0"), middle=hexed("f4c498"))
    for step, base, tall, colour, window in (
        (0.20, 0.30, 0.26, "a88ca4", None),
        (0.26, 0.44, 0.26, "5c5478", "ffe088"),
    ):
        for number in range(-8, 9):
            top = base + tall * (((number * 37) % 11) / 11 - 0.5)
            left, right = number * step - step * 0.46, number * step + step * 0.46
            canvas.fill_stage(
                np.array([(left, top), (right, top), (right, 1.0), (left, 1.0)]), hexed(colour), line=True
            )
            if window:
                _windows(canvas, left, right, top, hexed(window), number)


def mountain(canvas: Canvas) -> None:
    canvas.gradient(hexed("78b0e0"), hexed("e8f0ec"))
    _clouds(canvas, WHITE, 0.7)
    for x, top, wide, colour in (
        (-0.42, 0.22, 0.52, "7888a8"),
        (0.46, 0.16, 0.60, "687898"),
        (0.02, 0.34, 0.5, "586888"),
        (-1.1, 0.30, 0.6, "687898"),
        (1.2, 0.28, 0.6, "7888a8"),
    ):
        peak = np.array([(x, top), (x + wide, 0.85), (x - wide, 0.85)])
        canvas.fill_stage(peak, hexed(colour))
        snow = [
            (x, top),
            (x + 0.28 * wide, top + 0.17),
            (x + 0.12 * wide, top + 0.13),
            (x, top + 0.2),
            (x - 0.12 * wide, top + 0.12),
            (x - 0.26 * wide, top + 0.17),
        ]
        canvas.fill_stage(np.array(snow), WHITE)
    _hills(canvas, 0.76, 0.03, hexed("5c9060"))
    _hills(canvas, 0.86, 0.03, hexed("447848"))


def snow(canvas: Canvas) -> None:
    canvas.gradient(hexed("a8c4dc"), hexed("eaf2f8"))
    for number, x in enumerate(np.linspace(-_SIDE, _SIDE, 9)):
        _fir(canvas, x + 0.05 * (number % 2), 0.80, 0.42 + 0.06 * (number % 3), 0.17, hexed("7c9cac"))
        _fir(canvas, x + 0.05 * (number % 2), 0.50 + 0.02 * (number % 2), 0.14, 0.07, WHITE)
    _hills(canvas, 0.74, 0.03, hexed("f6fafd"))
    _hills(canvas, 0.86, 0.03, WHITE)
    for x, y, size in _scattered(60, 11):
        canvas.dot_stage(x, y, 0.006 + 0.009 * size, WHITE)


def space(canvas: Canvas) -> None:
    canvas.gradient(hexed("140a30"), hexed("381858"), middle=hexed("240e48"))
    for x, y, reach, colour in (
        (-0.35, 0.35, 0.5, "6030a0"),
        (0.4, 0.62, 0.5, "a03078"),
        (0.1, 0.1, 0.4, "3040b0"),
    ):
        for ring in (1.0, 0.7, 0.4):
            canvas.tone_stage(_blob(x, y, reach * ring, 0.7 * reach * ring), hexed(colour), 0.16)
    _stars(canvas, 70, 1.0)
    canvas.dot_stage(-0.36, 0.17, 0.10, hexed("f0a860"))
    canvas.tone_stage(_blob(-0.335, 0.185, 0.085, 0.085), hexed("7a2c40"), 0.35)
    _ring(canvas, -0.36, 0.17, hexed("ffe0b0"))


def sunset(canvas: Canvas) -> None:
    canvas.gradient(hexed("4a2a6c"), hexed("ffc060"), middle=hexed("e8604c"))
    for reach, strength in ((0.46, 0.16), (0.36, 0.22)):
        canvas.tone_stage(_blob(0.0, 0.52, reach, reach), hexed("ffd070"), strength)
    canvas.dot_stage(0.0, 0.52, 0.27, hexed("ffe08a"))
    for y, colour in ((0.70, "7a3464"), (0.80, "5a2858"), (0.90, "3c1c48")):
        _hills(canvas, y, 0.025, hexed(colour))


def garden(canvas: Canvas) -> None:
    canvas.gradient(hexed("a4dcf0"), hexed("eef8d8"))
    for number, x in enumerate(np.linspace(-_SIDE, _SIDE, 15)):
        colour = hexed("68b058") if number % 2 else hexed("84c468")
        canvas.fill_stage(_blob(x, 0.58 + 0.04 * (number % 3), 0.19, 0.17), colour)
    canvas.fill_stage(_below(0.66, 0.02), hexed("58a04c"))
    petals = ("f05878", "fff4f0", "f8c030", "b070e0")
    for number, (x, y, size) in enumerate(_scattered(70, 5)):
        place, reach = 0.44 + 0.55 * y, 0.016 + 0.016 * size + 0.012 * y
        canvas.dot_stage(x, place, reach, hexed(petals[number % 4]))
        canvas.dot_stage(x, place, 0.4 * reach, hexed("f8d848") if number % 4 != 2 else hexed("a05020"))


def _blob(x: float, y: float, across: float, down: float) -> Points:
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack((x + across * np.cos(turn), y + down * np.sin(turn)), axis=1)


def _ring(canvas: Canvas, x: float, y: float, colour: Colour) -> None:
    outer, inner = _blob(x, y, 0.18, 0.035), _blob(x, y, 0.13, 0.025)
    canvas.tone_stage(np.concatenate((outer, outer[:1], inner[:1], inner[::-1])), colour, 0.9)


def _below(y: float, swell: float) -> Points:
    """Everything under a gently waving line."""
    x = np.linspace(-_SIDE, _SIDE, 40)
    wave = np.stack((x, y + swell * np.sin(9 * x)), axis=1)
    return np.concatenate((wave, [(_SIDE, 1.1), (-_SIDE, 1.1)]))


def _hills(canvas: Canvas, y: float, swell: float, colour: Colour) -> None:
    x = np.linspace(-_SIDE, _SIDE, 48)
    crest = y + swell * (np.sin(4.1 * x + 20 * y) + 0.5 * np.sin(9.7 * x + 33 * y))
    canvas.fill_stage(
        np.concatenate((np.stack((x, crest), axis=1), [(_SIDE, 1.1), (-_SIDE, 1.1)])), colour, line=True
    )


def _clouds(canvas: Canvas, colour: Colour, strength: float) -> None:
    for x, y, reach in (
        (-0.36, 0.13, 0.10),
        (-0.25, 0.12, 0.075),
        (-0.44, 0.145, 0.06),
        (0.62, 0.26, 0.10),
        (0.72, 0.27, 0.07),
        (-0.85, 0.28, 0.11),
    ):
        canvas.tone_stage(_blob(x, y, reach, 0.45 * reach), colour, strength)


def _fir(canvas: Canvas, x: float, base: float, tall: float, wide: float, colour: Colour) -> None:
    for share, spread in ((1.0, 0.55), (0.72, 0.78), (0.42, 1.0)):
        top = base - tall * share
        low = base - tall * max(0.0, share - 0.48)
        tier = np.array([(x, top), (x + wide * spread, low), (x - wide * spread, low)])
        canvas.fill_stage(tier, mix(colour, BLACK, 0.10 * (1 - share)))


def _palm(canvas: Canvas, x: float, y: float) -> None:
    trunk = smooth(
        [
            (x - 0.02, y),
            (x + 0.02, y + 0.25),
            (x - 0.03, y + 0.6),
            (x + 0.03, y + 0.6),
            (x + 0.06, y + 0.25),
            (x + 0.02, y),
        ]
    )
    canvas.fill_stage(trunk, hexed("8c6440"), line=True)
    for across, down in (
        (0.24, 0.02),
        (0.2, 0.14),
        (0.08, 0.2),
        (-0.12, 0.18),
        (-0.22, 0.08),
        (-0.2, -0.05),
        (0.16, -0.08),
    ):
        leaf = smooth(
            [
                (x, y),
                (x + 0.55 * across, y + 0.45 * down - 0.06),
                (x + across, y + down),
                (x + 0.5 * across, y + 0.5 * down + 0.005),
            ]
        )
        canvas.fill_stage(leaf, hexed("2f8a50"), line=True)


def _windows(canvas: Canvas, left: float, right: float, top: float, colour: Colour, number: int) -> None:
    wide = (right - left) / 7
    for row in range(9):
        for column in range(3):
            if (row * 5 + column * 3 + number * 7) % 4:
                x, y = left + wide * (1 + 2 * column), top + 0.03 + 0.055 * row
                pane = np.array([(x, y), (x + wide, y), (x + wide, y + 0.028), (x, y + 0.028)])
                canvas.fill_stage(pane, colour)


def _stars(canvas: Canvas, count: int, depth: float) -> None:
    for x, y, size in _scattered(count, 3):
        canvas.dot_stage(x, y * depth, 0.003 + 0.006 * size**2, mix(WHITE, hexed("a8c0ff"), size))


def _scattered(count: int, start: int) -> list[tuple[float, float, float]]:
    """(x in stage units, y and size in 0 .. 1), evenly strewn: an additive recurrence."""
    return [
        ((2 * (number * 0.7548777 % 1) - 1) * 1.0, number * 0.5698403 % 1, number * 0.3819660 % 1)
        for number in range(start, start + count)
    ]


BACKDROPS: Mapping[str, Callable[[Canvas], None]] = {
    "studio": studio,
    "beach": beach,
    "forest": forest,
    "night": night,
    "city": city,
    "mountain": mountain,
    "snow": snow,
    "space": space,
    "sunset": sunset,
    "garden": garden,
}
