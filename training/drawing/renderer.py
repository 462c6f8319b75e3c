"""Draws an avatar in a scene: the pictures the tiny model learns to paint, and those it is judged by.

A picture depends on its arguments alone, bit for bit, and every number of the avatar moves it.
Does not know: embeddings, prompts, random numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.drawing.avatar import Avatar, Scene
from training.drawing.backdrop import BACKDROPS
from training.drawing.canvas import Canvas
from training.drawing.figure import Figure
from training.drawing.finish import FINISHES, LIGHTINGS

Picture = npt.NDArray[np.uint8]  # RGB (height, width, 3)


def render(avatar: Avatar, scene: Scene, width: int = 256, height: int = 256) -> Picture:
    """Any size; the person keeps to the middle and is as large as the shorter side allows."""
    return np.asarray(render_image(avatar, scene, width, height))


def render_image(avatar: Avatar, scene: Scene, width: int = 256, height: int = 256) -> Image.Image:
    canvas = Canvas(width, height, scene.style)
    BACKDROPS[scene.setting](canvas)
    Figure(avatar, scene).draw(canvas)
    finished = FINISHES[scene.style](canvas.reduced(width, height))
    return LIGHTINGS[scene.light](finished)
