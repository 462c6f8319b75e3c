"""IDFormer: a face embedding and five layers of a vision tower, distilled into identity tokens.

Thirty-two learned queries read, scale by scale, the tapped layers of the EVA tower together with
the mapped face embedding. Parameters are named as in PuLID's checkpoint (without `pulid_encoder.`).

Knows: the network. Does not know: photos, files, how its inputs are made (`encoder.py`), what the
tokens are for (`attention.py`). Paper: https://arxiv.org/abs/2404.16022
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_SCALES = 5  # tapped layers of the vision tower


class IDFormer(nn.Module):
    def __init__(
        self,
        *,
        dim: int = 1024,
        depth: int = 10,
        dim_head: int = 64,
        heads: int = 16,
        num_id_token: int = 5,
        num_queries: int = 32,
        output_dim: int = 2048,
        ff_mult: int = 4,
        id_dim: int = 1280,
        vision_dim: int = 1024,
    ):
        super().__init__()
        if depth % NUM_SCALES:
            raise ValueError(f"depth must be a multiple of {NUM_SCALES}, got {depth}")
        self.dim = dim
        self.id_dim = id_dim
        self.num_queries = num_queries
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, output_dim) * dim**-0.5)
        self.layers = nn.ModuleList(
            IDFormerLayer([PerceiverAttention(dim, dim_head, heads), feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )
        for scale in range(NUM_SCALES):
            self.add_module(f"mapping_{scale}", mapping(vision_dim, vision_dim, dim))
        self.id_embedding_mapping = mapping(id_dim, vision_dim, dim * num_id_token)

    def forward(self, id_cond: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """Identity tokens (batch, num_queries, output_dim).

        `id_cond` is (batch, id_dim), or (batch, photos, id_dim) for several photos of one person;
        `hidden_states` are the five tapped layers, each (batch, tokens, vision_dim).
        """
        batch = id_cond.shape[0]
        id_tokens = self.id_embedding_mapping(id_cond).reshape(batch, -1, self.dim)
        latents = torch.cat((self.latents.expand(batch, -1, -1), id_tokens), dim=1)
        for scale, states in zip(range(NUM_SCALES), hidden_states, strict=True):
            vision_tokens = self.get_submodule(f"mapping_{scale}")(states)
            context = torch.cat((id_tokens, vision_tokens), dim=1)
            for layer in self._layers_of(scale):
                latents = layer(context, latents)
        return latents[:, : self.num_queries] @ self.proj_out

    def _layers_of(self, scale: int) -> Sequence[nn.Module]:
        per_scale = len(self.layers) // NUM_SCALES
        return list(self.layers)[scale * per_scale : (scale + 1) * per_scale]


class IDFormerLayer(nn.ModuleList):
    """Attention and feed-forward, each with a residual. A list, because the checkpoint numbers the two."""

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        attention, feed = self
        latents = attention(context, latents) + latents
        return feed(latents) + latents


class PerceiverAttention(nn.Module):
    """Latents attend to the context and to themselves. `norm1` is the context's, `norm2` the latents'."""

    def __init__(self, dim: int, dim_head: int, heads: int):
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        """(batch, context tokens, dim) and (batch, latent tokens, dim) to the latents' shape."""
        latents = self.norm2(latents)
        keys_from = torch.cat((self.norm1(context), latents), dim=1)
        q = self._split_heads(self.to_q(latents))
        k, v = (self._split_heads(half) for half in self.to_kv(keys_from).chunk(2, dim=-1))
        # Scale dim_head^-1/2; every backend keeps the softmax in float32, as the reference does.
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, dim_head)


def feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),  # exact, not the tanh form of FLUX
        nn.Linear(dim * mult, dim, bias=False),
    )


def mapping(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, dim_hidden),
        nn.LayerNorm(dim_hidden),
        nn.LeakyReLU(),
        nn.Linear(dim_hidden, dim_hidden),
        nn.LayerNorm(dim_hidden),
        nn.LeakyReLU(),
        nn.Linear(dim_hidden, dim_out),
    )
