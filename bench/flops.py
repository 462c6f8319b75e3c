"""How many floating-point operations one forward pass of FLUX with PuLID takes, from its shapes.

A multiplication with an addition counts as two. Counted are matrix products and attention; norms,
activations and rotary turns are left out, so a rate computed from these numbers never flatters.
Knows the shapes of the model; knows no time and no device.
"""

from __future__ import annotations

from dataclasses import dataclass

MLP_RATIO = 4
MODULATIONS_DOUBLE, MODULATIONS_SINGLE = 12, 3  # vectors of the width, for image and text together


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxShape:
    """Sizes that decide the work. The defaults are FLUX.1-dev's and PuLID-FLUX's."""

    width: int = 3072
    double_blocks: int = 19
    single_blocks: int = 38
    latent_width: int = 64
    text_width: int = 4096
    identity_attentions: int = 20
    identity_inner: int = 2048
    identity_heads: int = 16
    identity_kv_width: int = 2048
    identity_tokens: int = 32


FLUX_DEV_SHAPE = FluxShape()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Operations of one forward pass of one row, by kind."""

    linear: int  # of the blocks
    attention: int
    identity: int  # in the reference's form, keys and values recomputed
    identity_folded: int
    rest: int  # embedders, modulation, the last projection

    @property
    def plain(self) -> int:
        """Without an identity."""
        return self.linear + self.attention + self.rest

    @property
    def with_identity(self) -> int:
        """The yardstick for every row with an identity, whatever form it computes."""
        return self.plain + self.identity


def forward(image_tokens: int, text_tokens: int, shape: FluxShape = FLUX_DEV_SHAPE) -> Forward:
    """One row of `image_tokens` and `text_tokens` through the transformer."""
    tokens, width = image_tokens + text_tokens, shape.width
    blocks = shape.double_blocks + shape.single_blocks
    # Both kinds of block: 3 + 1 matrices of width x width around attention, and 2 x MLP_RATIO in the MLP.
    block_weights = (4 + 2 * MLP_RATIO) * width**2
    return Forward(
        linear=2 * tokens * blocks * block_weights,
        attention=blocks * 4 * tokens**2 * width,
        identity=shape.identity_attentions * identity_attention(image_tokens, shape),
        identity_folded=shape.identity_attentions * folded_attention(image_tokens, shape),
        rest=embedders(image_tokens, text_tokens, shape) + modulation(shape),
    )


def identity_attention(image_tokens: int, shape: FluxShape) -> int:
    """One cross-attention in the reference's form: queries and output, scores and sums, keys and values."""
    around = 2 * 2 * image_tokens * shape.width * shape.identity_inner
    inside = 4 * image_tokens * shape.identity_tokens * shape.identity_inner
    keys_and_values = 2 * shape.identity_tokens * shape.identity_kv_width * 2 * shape.identity_inner
    return around + inside + keys_and_values


def folded_attention(image_tokens: int, shape: FluxShape) -> int:
    """The same with the identity folded in: one product with A, one with B."""
    return 2 * 2 * image_tokens * shape.width * shape.identity_heads * shape.identity_tokens


def embedders(image_tokens: int, text_tokens: int, shape: FluxShape) -> int:
    """Latents in and out, and the text."""
    per_token = 2 * image_tokens * shape.latent_width + text_tokens * shape.text_width
    return 2 * shape.width * per_token


def modulation(shape: FluxShape) -> int:
    """Large weights, one token: little arithmetic."""
    vectors = (
        MODULATIONS_DOUBLE * shape.double_blocks + MODULATIONS_SINGLE * shape.single_blocks + 2
    )  # 2: of the last norm
    return 2 * vectors * shape.width**2
