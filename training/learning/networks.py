"""The networks of the tiny profile as they are before and while they learn.

The sizes are `pulid.tiny_model`'s; the first weights are drawn from a seed as FLUX's own training would:
modulation, the last layer and the way out of each identity attention begin at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from pulid.parts import Networks, build_networks, build_text_models
from pulid.seeded import fill_randomly
from pulid.tiny_model import VISION_SEED, architecture
from training.learning.words import tokenizer

_SEED = 11


@dataclass(frozen=True)
class Student:
    networks: Networks
    t5: T5EncoderModel
    clip: CLIPTextModel


def new_student() -> Student:
    sizes = architecture(tokenizer().get_vocab_size())
    networks = build_networks(sizes)
    t5, clip = build_text_models(sizes)
    learning: list[nn.Module] = [
        networks.transformer,
        networks.autoencoder,
        networks.idformer,
        networks.identity_attentions,
        t5,
        clip,
    ]
    for number, network in enumerate([networks.eva_clip, *learning]):
        network.to_empty(device="cpu")
        fill_randomly(network, VISION_SEED if number == 0 else _SEED + number)
    networks.eva_clip.reset_computed_buffers("cpu")
    for module in clip.modules():
        if "position_ids" in module._buffers:
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    t5.encoder.embed_tokens = t5.shared  # one table under two names; `to_empty` has parted them
    _begin_quietly(networks)
    _small_embeddings(t5, clip)
    return Student(networks, t5, clip)


@torch.no_grad()
def _begin_quietly(networks: Networks) -> None:
    for name, parameter in networks.transformer.named_parameters():
        if ".norm1.linear." in name or ".norm1_context.linear." in name or ".norm.linear." in name:
            parameter.zero_()
        if name.startswith(("norm_out.linear", "proj_out")):
            parameter.zero_()
    for name, parameter in networks.identity_attentions.named_parameters():
        if name.endswith("to_out.weight"):
            parameter.mul_(0.1)
    for parameter in (networks.idformer.latents, networks.idformer.proj_out):
        parameter.mul_(math.sqrt(parameter.shape[-1] / parameter.shape[-2]) if parameter.ndim == 2 else 1.0)


@torch.no_grad()
def _small_embeddings(t5: T5EncoderModel, clip: CLIPTextModel) -> None:
    """`fill_randomly` takes tables for matrices; their rows should be of length about 1 each number."""
    generator = torch.Generator().manual_seed(_SEED)
    for table in (t5.shared, *(m for m in clip.modules() if isinstance(m, nn.Embedding))):
        table.weight.copy_(0.3 * torch.randn(table.weight.shape, generator=generator))
