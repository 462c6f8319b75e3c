"""The networks of one engine, and the sizes they are built in.

`FLUX_DEV` is the real thing; `pulid.tiny` has a small sibling. Both are built by the same code from
the same classes, and differ in numbers only. Knows sizes; does not know files or random weights.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Constructor arguments of each network; what is not named keeps the class's default."""

    transformer: Sizes = field(default_factory=dict)  # FluxTransformer2DModel
    autoencoder: Sizes = field(default_factory=dict)  # AutoencoderKL, over FLUX's
    idformer: Sizes = field(default_factory=dict)
    identity_attention: Sizes = field(default_factory=dict)
    eva_clip: Sizes = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything an engine is made of, ready on its device."""

    networks: Networks
    text: TextEncoder
    faces: FaceReader
