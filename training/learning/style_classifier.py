"""A small convolutional network that tells the five styles apart, taught on drawings in a minute.

It judges painted pictures, and has seen none. Does not know: the painter, prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from training.drawing.avatar import STYLES
from training.drawing.renderer import render_image
from training.learning.patch_code import as_tensor
from training.people.identity_map import avatar_of
from training.people.population import people
from training.prompts import sampled_scene

_EDGE = 128
_DRAWINGS = 1500
_HELD_OUT = 200
_EPOCHS = 8
_BLURS = (1, 2)  # painted pictures are softer than drawn ones, so it is shown soft ones, too


@dataclass
class StyleClassifier:
    network: nn.Module
    right: float  # share of drawings held out

    @classmethod
    def taught(cls) -> Self:
        torch.manual_seed(5)
        pictures, styles = _drawings(_DRAWINGS + _HELD_OUT)
        network = _network()
        _teach(network, pictures[:_DRAWINGS], styles[:_DRAWINGS])
        found = cls(network, 0.0)
        scores = found._scores(pictures[_DRAWINGS:])
        found.right = float((scores.argmax(1) == styles[_DRAWINGS:]).float().mean())
        return found

    def accuracy(self) -> float:
        return round(self.right, 3)

    def scores(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(n, styles), which add up to 1."""
        resized = F.interpolate(as_tensor(pictures), (_EDGE, _EDGE), mode="area")
        return self._scores(resized).numpy()

    def styles(self, pictures: npt.NDArray[np.uint8]) -> Sequence[str]:
        return [STYLES[index] for index in self.scores(pictures).argmax(1)]

    @torch.no_grad()
    def _scores(self, pictures: Tensor) -> Tensor:
        return self.network.eval()(pictures).softmax(1)


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    widths = (3, 16, 32, 48, 64)
    for inner, outer in pairwise(widths):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(STYLES)))


def _teach(network: nn.Module, pictures: Tensor, styles: Tensor) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in track(range(_EPOCHS), description="style classifier"):
        for chosen in torch.randperm(len(pictures)).split(50):
            shown = pictures[chosen]
            blur = _BLURS[int(torch.randint(len(_BLURS), ()))]
            shown = F.interpolate(F.avg_pool2d(shown, blur), (_EDGE, _EDGE), mode="bilinear")
            loss = F.cross_entropy(network.train()(shown), styles[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _drawings(count: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(77)
    scenes = [sampled_scene(random) for _ in range(count)]
    faces = people(count, random)
    drawn = [
        np.asarray(render_image(avatar_of(face), scene, _EDGE, _EDGE))
        for face, scene in zip(faces, scenes, strict=True)
    ]
    return as_tensor(np.stack(drawn)), torch.tensor([STYLES.index(scene.style) for scene in scenes])


if __name__ == "__main__":
    print(StyleClassifier.taught().accuracy())
