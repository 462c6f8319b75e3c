"""LPIPS: how far apart two pictures look, by the features of AlexNet.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924; the
numbers are those of the package lpips 0.1.4 with net="alex". Both sets of weights are files that somebody
brings.

Knows the network and its files' names. Does not know where they come from, reports or pictures on a disk.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pulid.engine import RgbImage
from pulid.errors import WeightsMissing
from pulid.state_files import read_state

BACKBONE, HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"  # as torchvision and lpips publish them
WIDTHS = (64, 192, 384, 256, 256)  # of the five convolutions, whose rectified results are compared
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


class Lpips(nn.Module):
    """AlexNet's convolutions and a weight for each of their channels."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = WIDTHS
        self.features = nn.ModuleDict(  # under the numbers that torchvision gives them
            {
                "0": nn.Conv2d(3, a, kernel_size=11, stride=4, padding=2),
                "3": nn.Conv2d(a, b, kernel_size=5, padding=2),
                "6": nn.Conv2d(b, c, kernel_size=3, padding=1),
                "8": nn.Conv2d(c, d, kernel_size=3, padding=1),
                "10": nn.Conv2d(d, e, kernel_size=3, padding=1),
            }
        )
        for number, width in enumerate(WIDTHS):
            self.register_buffer(f"head{number}", torch.zeros(width))

    @torch.inference_mode()
    def distance(self, one: RgbImage, other: RgbImage) -> float:
        """Of two pictures of one size, each side 32 pixels or more. 0: alike."""
        total = torch.zeros(())
        for number, (a, b) in enumerate(zip(self._layers(one), self._layers(other), strict=True)):
            weighted = (a - b).square() * getattr(self, f"head{number}")[:, None, None]
            total += weighted.sum(dim=1).mean()
        return float(total)

    def _layers(self, picture: RgbImage) -> list[Tensor]:
        """Of each convolution, every place's channels to the length of one: (1, width, rows, columns)."""
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        x = (x - shift) / scale
        layers = []
        for number, convolution in self.features.items():
            if number in ("3", "6"):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(convolution(x))
            layers.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPS))
        return layers


def load_lpips(folder: Path) -> Lpips:
    """With BACKBONE and HEADS of a folder. Raises WeightsMissing."""
    if absent := [name for name in (BACKBONE, HEADS) if not (folder / name).is_file()]:
        raise WeightsMissing(
            f"{folder} lacks {' and '.join(absent)}. docs/evaluate.md says where they are published."
        )
    network = Lpips()
    backbone, heads = read_state(folder / BACKBONE), read_state(folder / HEADS)
    found = {name: tensor for name, tensor in backbone.items() if not name.startswith("classifier.")}
    for number, width in enumerate(WIDTHS):
        head = heads.get(f"lin{number}.model.1.weight", torch.zeros(0))
        if tuple(head.shape) != (1, width, 1, 1):
            raise WeightsMissing(f"{folder / HEADS} holds no heads of LPIPS over AlexNet.")
        found[f"head{number}"] = head.flatten()
    try:
        network.load_state_dict(found)
    except RuntimeError as exc:
        raise WeightsMissing(f"{folder / BACKBONE} is no AlexNet as torchvision has it.") from exc
    return network.eval().requires_grad_(False)
