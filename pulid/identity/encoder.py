"""A face crop becomes identity tokens: background away, colours away, two networks, one sequence.

Knows: what the networks are shown, in which precision and in which order. Does not know: how a
face is found and parsed (`face.py`), how tokens reach the transformer (`attention.py`), caching.
The order of the steps and of the casts is docs/spec/PULID_SPEC.md, section 3, steps 5 to 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pulid.identity.eva_clip import EvaClipVision
from pulid.identity.idformer import NUM_SCALES, IDFormer

if TYPE_CHECKING:
    from pulid.identity.face import FaceCrop

# Classes of the face parser. Hair (17), glasses (6), skin and features stay.
WHITE_LABELS = (
    0,  # background
    7,  # left ear
    8,  # right ear
    9,  # earring
    14,  # neck
    15,  # necklace
    16,  # cloth
    18,  # hat
)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of R, G, B
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class IdentityEncoder:
    """Faces to identity tokens. Moves the two networks to `device` and `dtype`; safe to share by threads."""

    def __init__(
        self,
        eva: EvaClipVision,
        idformer: IDFormer,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        antialias: bool = True,
    ):
        self.eva = eva.to(device=device, dtype=dtype).eval()
        self.idformer = idformer.to(device=device, dtype=dtype).eval()
        self.device = torch.device(device)
        self.dtype = dtype
        self.antialias = antialias  # off: what the reference does with its oldest pinned torchvision
        self._unconditional: Tensor | None = None

    @torch.no_grad()
    def encode(self, face: FaceCrop) -> Tensor:
        """Identity tokens (1, num_queries, output_dim) of one face."""
        pooled, hidden_states = self.eva(self.vision_pixels(face))
        face_embedding = self._tensor(face.face_embedding, self.dtype).reshape(1, -1)
        return self.idformer(identity_condition(face_embedding, pooled), hidden_states)

    def vision_pixels(self, face: FaceCrop) -> Tensor:
        """What the vision tower is shown: (1, 3, image_size, image_size), float32 up to the last cast."""
        aligned = self._tensor(face.aligned, torch.float32).permute(2, 0, 1).unsqueeze(0) / 255.0
        labels = self._tensor(face.labels, torch.int64)
        image = white_background_gray_face(aligned, labels)
        image = resize_for_vision(image, self.eva.image_size, self.antialias)
        return normalise_for_clip(image).to(self.dtype)

    @torch.no_grad()
    def unconditional(self) -> Tensor:
        """The tokens of nobody, for the negative branch of true CFG: IDFormer of zeros, not zeros.

        Computed once. Two threads that come first together compute the same tensor twice, no harm.
        """
        if self._unconditional is None:
            id_cond = self._zeros(1, self.idformer.id_dim)
            hidden_state = self._zeros(1, self.eva.num_tokens, self.eva.width)
            self._unconditional = self.idformer(id_cond, [hidden_state] * NUM_SCALES)
        return self._unconditional

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> Tensor:
        # A copy: the arrays of a face may be read-only or reversed views, which torch does not wrap.
        return torch.tensor(np.ascontiguousarray(array)).to(device=self.device, dtype=dtype)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)


def white_background_gray_face(aligned: Tensor, labels: Tensor) -> Tensor:
    """The face in gray, everything that is not the person's head in white.

    `aligned` is RGB (batch, 3, height, width) in [0, 1]; `labels` holds the parser's class of each
    pixel, (height, width) or (batch, height, width). Returns (batch, 3, height, width).
    """
    luma = torch.tensor(_LUMA, device=aligned.device).view(1, 3, 1, 1)
    gray = (aligned * luma).sum(dim=1, keepdim=True).expand_as(aligned)
    white = torch.isin(labels, torch.tensor(WHITE_LABELS, device=labels.device)).unsqueeze(-3)
    return torch.where(white, 1.0, gray)


def resize_for_vision(image: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Bicubic resize of (batch, 3, height, width) to a square. Not clamped: it overshoots a little."""
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=antialias)


def normalise_for_clip(image: Tensor) -> Tensor:
    """OpenAI CLIP's mean and deviation, on RGB (batch, 3, height, width)."""
    mean = torch.tensor(_CLIP_MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(_CLIP_STD, device=image.device).view(1, 3, 1, 1)
    return (image - mean) / std


def identity_condition(face_embedding: Tensor, pooled: Tensor) -> Tensor:
    """What IDFormer's id tokens are made of: ArcFace (1, 512) as it is, then pooled EVA at length 1."""
    return torch.cat((face_embedding, pooled / pooled.norm(dim=1, keepdim=True)), dim=1)
