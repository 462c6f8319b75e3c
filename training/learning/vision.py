"""What the vision tower says of pictures: the same for every run, and nothing that the painter can use.

The tiny profile's tower has random weights (from a seed, so that they need no file). The id encoder has to
learn to live with its features and to take the person from ArcFace. Here are features of many gray
pictures, some of drawings and some of noise, from which a batch takes some at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pulid.identity.encoder import identity_condition, normalise_for_clip
from pulid.identity.eva_clip import EvaClipVision
from training.learning.lessons import Tokenizers, draw_lessons
from training.learning.patch_code import as_tensor
from training.learning.words import tokenizer

_DRAWINGS = 384
_FIRST_LESSON = 910_000_000
_BLANK = 0.1  # share of a batch that is told of no picture at all


@dataclass(frozen=True)
class VisionBank:
    pooled: Tensor  # (n, pooled width)
    hidden_states: Tensor  # (5, n, tokens, width)

    @classmethod
    @torch.no_grad()
    def of(cls, tower: EvaClipVision) -> Self:
        drawn = draw_lessons(_FIRST_LESSON, _DRAWINGS, 80, 80, Tokenizers(tokenizer())).pictures
        gray = as_tensor(drawn).mean(1, keepdim=True) / 2 + 0.5
        generator = torch.Generator().manual_seed(1)
        noise = [
            F.interpolate(torch.rand(32, 1, edge, edge, generator=generator), 80, mode="bicubic")
            for edge in (2, 4, 10, 40)
        ]
        pictures = torch.cat([gray, *noise]).expand(-1, 3, -1, -1)
        pictures = F.interpolate(pictures, (tower.image_size, tower.image_size), mode="bicubic")
        pooled, hidden_states = tower(normalise_for_clip(pictures))
        return cls(pooled, torch.stack(list(hidden_states)))

    def to(self, device: torch.device) -> VisionBank:
        return VisionBank(self.pooled.to(device), self.hidden_states.to(device))

    def beside(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        """IDFormer's two inputs for ArcFace vectors (n, 512)."""
        chosen = torch.randint(len(self.pooled), (len(faces),), device=faces.device)
        shown = (torch.rand(len(faces), device=faces.device) > _BLANK).float()[:, None]
        states = [state[chosen] * shown[:, None] for state in self.hidden_states]
        return identity_condition(faces, self.pooled[chosen]), states
