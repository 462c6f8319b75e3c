"""A linear code for pictures: 16 numbers for each patch of 8 x 8 pixels, the first principal components.

It stands in for the encoder of an autoencoder. What a small convolutional encoder reaches in hours a
linear one has at once, and the latents it makes are known before anything is trained. The components'
spreads are brought halfway to each other: as they are, noise hides all but the first ones; all equal,
the last ones, which hardly show, count as much as the colours do.

Does not know: drawings, networks. The server never codes a picture, it decodes (`train_decoder`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 16
EDGE = 8  # pixels of a patch
_EVENNESS = 0.5  # 0: spreads as they are; 1: all equal


@dataclass(frozen=True)
class PatchCode:
    mean: Tensor  # (3 * 8 * 8,)
    encoder: Tensor  # (3 * 8 * 8, 16)
    decoder: Tensor  # (16, 3 * 8 * 8), least squares

    @classmethod
    def fitted(cls, pictures: list[np.ndarray]) -> Self:
        """To uint8 pictures (h, w, 3) whose sides are multiples of 8. Latents then vary by 1 on average."""
        patches = torch.cat([_patches(as_tensor(picture[None])).flatten(0, 2) for picture in pictures])
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
        spread = variances[-CHANNELS:].flip(0).sqrt().float()
        components = directions[:, -CHANNELS:].flip(1).float()
        components = components * components.sum(0).sign()
        weights = spread**-_EVENNESS
        weights = weights / (weights * spread).square().mean().sqrt()
        return cls(mean, components * weights, (components / weights).T.contiguous())

    @classmethod
    def load(cls, file: Path) -> Self:
        with np.load(file) as stored:
            return cls(*(torch.from_numpy(stored[name]) for name in ("mean", "encoder", "decoder")))

    def save(self, file: Path) -> None:
        np.savez(file, mean=self.mean.numpy(), encoder=self.encoder.numpy(), decoder=self.decoder.numpy())

    def to(self, device: torch.device) -> PatchCode:
        return PatchCode(self.mean.to(device), self.encoder.to(device), self.decoder.to(device))

    def encode(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) in [-1, 1] -> latents (n, 16, h / 8, w / 8)."""
        return ((_patches(pictures) - self.mean) @ self.encoder).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """The linear way back, for comparison."""
        patches = latents.permute(0, 2, 3, 1) @ self.decoder + self.mean
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), EDGE)

    @property
    def gray(self) -> Tensor:
        """The latents of middle gray, (16,): contrast by a factor is the latents' distance to them by it."""
        return -self.mean @ self.encoder


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _patches(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, h / 8, w / 8, 3 * 8 * 8)."""
    return F.pixel_unshuffle(pictures, EDGE).permute(0, 2, 3, 1)
