"""The networks of one engine, and the sizes they are built in.

`FLUX_DEV` is the real thing; `pulid.tiny_model` and `pulid.seeded` have small siblings. All are built by
the same code from the same classes, and differ in numbers only. Knows sizes; does not know files or
random weights.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pulid.flux.text import TextEncoder
from pulid.flux.transformer import attention_count
from pulid.identity.attention import IdentityAttention
from pulid.identity.eva_clip import EvaClipVision
from pulid.identity.face import FaceReader
from pulid.identity.idformer import IDFormer

Sizes = Mapping[str, Any]

_FLUX_AUTOENCODER: Sizes = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_T5_XXL: Sizes = {  # as in FLUX.1-dev's text_encoder_2, the encoder of T5 v1.1 XXL
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_CLIP_L: Sizes = {  # as in FLUX.1-dev's text_encoder, the text half of CLIP ViT-L/14
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,  # means: the pooled vector is read where the largest token id is
    "pad_token_id": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Constructor arguments of each network; what is not named keeps the class's default."""

    transformer: Sizes = field(default_factory=dict)  # FluxTransformer2DModel
    autoencoder: Sizes = field(default_factory=dict)  # AutoencoderKL, over FLUX's
    idformer: Sizes = field(default_factory=dict)
    identity_attention: Sizes = field(default_factory=dict)
    eva_clip: Sizes = field(default_factory=dict)
    t5: Sizes = field(default_factory=dict)  # T5Config, over T5-XXL's
    clip: Sizes = field(default_factory=dict)  # CLIPTextConfig, over CLIP-L's


FLUX_DEV = Architecture()  # PuLID's modules and diffusers' FLUX default to the published sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The networks that come from checkpoints, on the meta device until their weights are assigned."""

    transformer: FluxTransformer2DModel
    autoencoder: AutoencoderKL
    idformer: IDFormer
    identity_attentions: nn.ModuleList  # of IdentityAttention, in the checkpoint's order
    eva_clip: EvaClipVision


def build_networks(architecture: Architecture) -> Networks:
    """All networks without weights (meta device), in evaluation mode."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True, **architecture.transformer)
        depth = (transformer.config.num_layers, transformer.config.num_single_layers)
        networks = Networks(
            transformer=transformer,
            autoencoder=AutoencoderKL(**{**_FLUX_AUTOENCODER, **architecture.autoencoder}),
            idformer=IDFormer(**architecture.idformer),
            identity_attentions=nn.ModuleList(
                IdentityAttention(**architecture.identity_attention) for _ in range(attention_count(*depth))
            ),
            eva_clip=EvaClipVision(**architecture.eva_clip),
        )
    for network in (
        networks.transformer,
        networks.autoencoder,
        networks.idformer,
        networks.identity_attentions,
        networks.eva_clip,
    ):
        network.requires_grad_(False).eval()
    return networks


def build_text_models(architecture: Architecture) -> tuple[T5EncoderModel, CLIPTextModel]:
    """Both text models without weights (meta device), in evaluation mode."""
    with torch.device("meta"):
        t5 = T5EncoderModel(T5Config(**{**_T5_XXL, **architecture.t5}))
        clip = CLIPTextModel(CLIPTextConfig(**{**_CLIP_L, **architecture.clip}))
    return t5.requires_grad_(False).eval(), clip.requires_grad_(False).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxStreams:
    """What of the transformer comes from the host in each pass: numbers as in `FusedFlux.stream`."""

    doubles: Sequence[int]
    singles: Sequence[int]
    modulation: Sequence[int]
    slot: int  # bytes that the largest of them takes on the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything an engine is made of, ready on its device."""

    networks: Networks
    text: TextEncoder
    faces: FaceReader
    # Positions run as in a picture of so many image tokens across; None: as FLUX counts them.
    tokens_across: float | None = None
    streams: FluxStreams | None = None  # None: all of the transformer is on the device
