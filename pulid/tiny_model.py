"""The tiny profile's model: FLUX and PuLID of the real classes, small, trained on drawings.

Knows: its sizes, its words, and how its one file is laid out. Does not know how it was trained
(`training/` in the repository, not part of the package), nor faces.
"""

from __future__ import annotations

from pulid.flux.text import CLIP_LENGTH
from pulid.parts import Architecture

WIDTH = 192  # of the transformer: three heads
HEADS = 3
TEXT_WIDTH = 64
VISION_WIDTH = 96
POOLED_VISION = 32
ID_TOKEN_WIDTH = 96
VISION_SEED = 7  # of the random vision tower, which has no place in the file
TOKENS_ACROSS = 64.0  # positions run as in a picture of 1024 x 1024, whatever the size
TOKENIZER = "tokenizer"  # what the file calls it among its metadata


def architecture(vocabulary: int) -> Architecture:
    """Sizes, for a tokenizer of so many tokens."""
    return Architecture(
        transformer={
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": HEADS,
            "attention_head_dim": WIDTH // HEADS,
            "axes_dims_rope": (16, 24, 24),
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": TEXT_WIDTH,
        },
        autoencoder={
            "block_out_channels": (16, 32, 48, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "mid_block_add_attention": False,  # what it learns at one size it would do wrong at another
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        idformer={
            "dim": 96,
            "depth": 5,
            "dim_head": 32,
            "heads": 3,
            "num_id_token": 8,
            "num_queries": 8,
            "output_dim": ID_TOKEN_WIDTH,
            "ff_mult": 2,
            "id_dim": 512 + POOLED_VISION,
            "vision_dim": VISION_WIDTH,
        },
        identity_attention={"dim": WIDTH, "dim_head": 32, "heads": 4, "kv_dim": ID_TOKEN_WIDTH},
        eva_clip={
            "image_size": 70,
            "width": VISION_WIDTH,
            "depth": 6,
            "heads": 3,
            "embed_dim": POOLED_VISION,
        },
        t5={
            "vocab_size": vocabulary,
            "d_model": TEXT_WIDTH,
            "d_kv": 32,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 2,
        },
        clip={
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": CLIP_LENGTH,
            "bos_token_id": 2,
            "eos_token_id": 1,  # where CLIP reads its pooled vector
            "pad_token_id": 1,
        },
    )
