"""What a style or a light does to a finished sheet: glow, hatching, paper, vignette.

Works on whole pictures at their final size; knows no shapes. Patterns are made once per size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter

Gray = npt.NDArray[np.floating]


def unchanged(picture: Image.Image) -> Image.Image:
    return picture


def halftone(picture: Image.Image) -> Image.Image:
    """Printed dots towards the corners."""
    return ImageChops.multiply(picture, _dots(picture.size))


def hatched(picture: Image.Image) -> Image.Image:
    """Pencil strokes where it is dark, twice over where it is very dark."""
    dark = 1 - np.asarray(picture.convert("L"), np.float32) / 255
    one, other, grain = _hatching(picture.size)
    strokes = np.clip(3.2 * (dark - 0.36), 0, 1) * one + np.clip(3.2 * (dark - 0.52), 0, 1) * other
    light = np.clip((1 - 0.34 * strokes) * grain, 0, 1)
    sheet = Image.fromarray((255 * light).astype(np.uint8)).convert("RGB")
    return ImageChops.multiply(picture, sheet)


def glowing(picture: Image.Image) -> Image.Image:
    """Bright lines light up what is around them."""
    small = picture.reduce(4) if min(picture.size) >= 256 else picture.reduce(2)
    glow = small.filter(ImageFilter.GaussianBlur(max(1.5, min(small.size) / 26)))
    glow = glow.point([min(255, round(1.25 * max(0, level - 26))) for level in range(256)] * 3)
    return ImageChops.screen(picture, glow.resize(picture.size, Image.Resampling.BILINEAR))


def painted(picture: Image.Image) -> Image.Image:
    """Pigment on paper: it pools at edges, varies in the wash and leaves a ragged white border."""
    reach = max(1.5, min(picture.size) / 90)
    half = picture.reduce(2).filter(ImageFilter.GaussianBlur(reach / 2))
    soft = half.resize(picture.size, Image.Resampling.BILINEAR)
    pooled = ImageChops.subtract(picture, ImageChops.subtract(soft, picture).point(_gain(0.75)))
    wash, border = _wash(picture.size)
    washed = ImageChops.screen(pooled, wash)
    return Image.composite(_paper(picture.size), washed, border)


def _gain(share: float) -> list[int]:
    return [round(share * level) for level in range(256)] * 3


@lru_cache(maxsize=32)
def _grid(size: tuple[int, int]) -> tuple[Gray, Gray]:
    """x and y in short sides from the middle."""
    width, height = size
    short = min(size)
    x = (np.arange(width, dtype=np.float32) - width / 2) / short
    y = (np.arange(height, dtype=np.float32) - height / 2) / short
    return x[None, :], y[:, None]


@lru_cache(maxsize=32)
def _dots(size: tuple[int, int]) -> Image.Image:
    x, y = _grid(size)
    pitch = 200.0
    screen = np.cos(pitch * 0.72 * (x + y)) * np.cos(pitch * 0.72 * (x - y))
    away = np.clip((np.sqrt((x / 0.56) ** 2 + (y / 0.56) ** 2) - 0.98) * 1.1, 0, 0.75)
    return _sheet(1 - 0.34 * np.clip((screen - 1 + 1.6 * away) * 4, 0, 1))


@lru_cache(maxsize=32)
def _hatching(size: tuple[int, int]) -> tuple[Gray, Gray, Gray]:
    x, y = _grid(size)
    noise = _noise(size, 48, seed=4)
    one = np.clip(0.5 + 1.6 * np.sin(170 * (x + y) + 2.2 * noise), 0, 1)
    other = np.clip(0.5 + 1.6 * np.sin(170 * (x - 0.8 * y) + 2.2 * noise), 0, 1)
    grain = 1 - 0.03 * np.abs(_noise(size, 90, seed=5))
    return one, other, grain


@lru_cache(maxsize=32)
def _wash(size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """What lightens the paint, and the mask of the bare border."""
    x, y = _grid(size)
    wash = (
        0.13
        + 0.10 * _noise(size, 5, seed=1)
        + 0.05 * _noise(size, 24, seed=2)
        + 0.02 * _noise(size, 70, seed=3)
    )
    wide, high = size[0] / min(size) / 2, size[1] / min(size) / 2
    to_edge = np.minimum(wide - np.abs(x), high - np.abs(y))
    ragged = to_edge + 0.020 * _noise(size, 7, seed=6) + 0.010 * _noise(size, 30, seed=7)
    bare = np.clip((0.045 - ragged) * 70, 0, 1)
    return _sheet(np.clip(wash, 0, 1)), Image.fromarray((255 * bare).astype(np.uint8))


@lru_cache(maxsize=32)
def _paper(size: tuple[int, int]) -> Image.Image:
    return _sheet(0.985 - 0.02 * np.abs(_noise(size, 120, seed=8)))


def _noise(size: tuple[int, int], cells: int, *, seed: int) -> Gray:
    """Smooth, about -1 .. 1, `cells` to the short side; the same in the middle of every size."""
    side = 2 * cells + 4  # enough for a picture twice as long as wide
    tile = Image.fromarray(np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32))
    across, down = (min(side / 2, length / min(size) * cells / 2) for length in size)
    box = (side / 2 - across, side / 2 - down, side / 2 + across, side / 2 + down)
    return np.asarray(tile.resize(size, Image.Resampling.BICUBIC, box=box), np.float32) * 0.6


def _sheet(light: Gray) -> Image.Image:
    return Image.fromarray((255 * np.clip(light, 0, 1)).astype(np.uint8)).convert("RGB")


FINISHES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "flat": unchanged,
    "comic": halftone,
    "sketch": hatched,
    "neon": glowing,
    "watercolour": painted,
}


def cinematic(picture: Image.Image) -> Image.Image:
    """Teal shadows, orange lights, dark corners."""
    curve = np.arange(256) / 255
    bent = curve + 0.10 * np.sin(2 * np.pi * (curve - 0.5)) * 0.6
    red, blue = bent + 0.10 * (curve - 0.45), bent - 0.12 * (curve - 0.45)
    table = np.concatenate((red, bent, blue))
    graded = picture.point([round(255 * min(1.0, max(0.0, level))) for level in table])
    return ImageChops.multiply(graded, _vignette(picture.size))


@lru_cache(maxsize=32)
def _vignette(size: tuple[int, int]) -> Image.Image:
    x, y = _grid(size)
    away = np.sqrt((x * min(size) / size[0]) ** 2 + (y * min(size) / size[1]) ** 2)
    return _sheet(1 - 0.95 * np.clip(away - 0.30, 0, 1) ** 1.1)


def warm(picture: Image.Image) -> Image.Image:
    return picture.point(_tint(1.08, 1.0, 0.82))


def cold(picture: Image.Image) -> Image.Image:
    return picture.point(_tint(0.82, 0.97, 1.10))


def mono(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


@lru_cache(maxsize=4)
def _tint(*gains: float) -> list[int]:
    return [min(255, round(gain * level)) for gain in gains for level in range(256)]


LIGHTINGS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "plain": unchanged,
    "cinematic": cinematic,
    "warm": warm,
    "cold": cold,
    "mono": mono,
}
