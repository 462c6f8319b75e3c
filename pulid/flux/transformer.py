"""The FLUX block loop with an identity: diffusers' own blocks, PuLID's residual as an argument.

Adds the identity's residual to the image tokens after every second double block and every fourth
single block. Without an identity the loop computes what `FluxTransformer2DModel.forward` computes,
bit for bit. No hook, no patch, nothing kept between calls.

Knows: after which blocks, and how the checkpoint numbers its attentions.
Does not know: faces, prompts, steps. The caller decides whether a step has an identity.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
import math
from typing import Protocol

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

DOUBLE_INTERVAL = 2
SINGLE_INTERVAL = 4

Rotary = tuple[Tensor, Tensor]  # cos and sin, each (text tokens + image tokens, head_dim), float32


class IdentityResidual(Protocol):
    """All that the block loop knows of an identity."""

    def residual(self, index: int, image: Tensor) -> Tensor:
        """What identity attention `index` adds to the image tokens (batch, tokens, dim); same shape."""
        ...


def attention_count(num_double: int, num_single: int) -> int:
    """How many identity attentions a transformer of this depth takes: 20 for 19 + 38 blocks."""
    return math.ceil(num_double / DOUBLE_INTERVAL) + math.ceil(num_single / SINGLE_INTERVAL)


class IdentityFlux:
    """Predicts the velocity of a batch of rows. Holds the transformer, and nothing else."""

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        self.transformer = transformer
        self.attention_count = attention_count(
            len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
        )

    def rotary(self, text_ids: Tensor, image_ids: Tensor) -> Rotary:
        """Rotary tables for text ids (text tokens, 3) and image ids (image tokens, 3)."""
        return self.transformer.pos_embed(torch.cat((text_ids, image_ids), dim=0))

    def __call__(
        self,
        latents: Tensor,  # (batch, image tokens, 64), packed
        *,
        text: Tensor,  # (batch, text tokens, 4096), T5
        pooled: Tensor,  # (batch, 768), CLIP
        timestep: Tensor,  # (batch,), 1 .. 0
        guidance: Tensor,  # (batch,), as the user gave it
        rotary: Rotary,
        identity: IdentityResidual | None = None,
    ) -> Tensor:  # (batch, image tokens, 64)
        flux = self.transformer
        image = flux.x_embedder(latents)
        # First the model's dtype, then times 1000, in that dtype: the reference's rounding.
        condition = flux.time_text_embed(
            timestep.to(image.dtype) * 1000, guidance.to(image.dtype) * 1000, pooled
        )
        text = flux.context_embedder(text)

        attention = 0  # counts on from the double to the single blocks
        for interval, blocks in (
            (DOUBLE_INTERVAL, flux.transformer_blocks),
            (SINGLE_INTERVAL, flux.single_transformer_blocks),
        ):
            for number, block in enumerate(blocks):
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb=condition,
                    image_rotary_emb=rotary,
                )
                if identity is not None and number % interval == 0:
                    image = image + identity.residual(attention, image)
                    attention += 1
        return flux.proj_out(flux.norm_out(image, condition))
