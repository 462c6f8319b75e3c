"""What a loader reads, at any size, with random weights and next to no memory: all are views of few numbers.

Large matrices of one width share a pool of normal numbers, each from another place of it. So a model of 33 GB
is made in seconds, and goes to a card by the loader's own way.
"""

import math
import types

import torch
from torch import nn

from gpu.full_size import random_faces
from pulid.load import FileModel
from pulid.parts import build_networks, build_text_models
from pulid.seeded import both_tokenizers, word_tokenizer

NETWORKS = ("transformer", "autoencoder", "idformer", "identity_attentions", "eva_clip")
BIAS, NORM_SPREAD = 0.02, 0.1
SHIFT = 4099  # numbers between the beginnings of two matrices


class Pools:
    """Normal numbers over the square root of a matrix's inputs."""

    def __init__(self, seed):
        self._draw = torch.Generator().manual_seed(seed)
        self._pools, self._begin = {}, 0

    def like(self, name, shape):
        if len(shape) == 1:
            numbers = torch.randn(shape, generator=self._draw)
            return BIAS * numbers if name.endswith("bias") else 1 + NORM_SPREAD * numbers
        inputs, count = math.prod(shape[1:]), math.prod(shape)
        pool = self._pools.get(inputs)
        if pool is None or len(pool) < count + SHIFT:
            pool = torch.randn(count + 64 * SHIFT, generator=self._draw).bfloat16() / math.sqrt(inputs)
            self._pools[inputs] = pool
        self._begin = (self._begin + SHIFT) % (len(pool) - count)
        return pool[self._begin : self._begin + count].view(shape)


@torch.no_grad()
def random_files(architecture, seed=20_261):
    """A FileModel of the architecture, whose CLIP has the marks of `gpu.full_size`; the same for a seed."""
    networks = build_networks(architecture)
    t5, clip = build_text_models(architecture)
    pools = Pools(seed)
    for network in (*(getattr(networks, name) for name in NETWORKS), t5, clip):
        fill(network, pools)
    networks.eva_clip.reset_computed_buffers("cpu")
    positions = clip.embeddings.position_ids.shape[-1]
    clip.embeddings.position_ids = torch.arange(positions)[None]
    for_t5, for_clip = both_tokenizers(word_tokenizer())
    faces = types.SimpleNamespace(read=random_faces().read)
    faces.to = lambda device: faces
    return FileModel(
        networks=networks, t5=t5, t5_tokenizer=for_t5, clip=clip, clip_tokenizer=for_clip, faces=faces
    )


def fill(network, pools):
    """One parameter stays one where it has two names."""
    made = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                made[parameter] = nn.Parameter(pools.like(name, parameter.shape), requires_grad=False)
            module._parameters[name] = made[parameter]
