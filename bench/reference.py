"""The reference's denoising, ported literally and run eagerly: what the other rows are compared with.

FLUX as its authors published it (fused projections, rotary tables made anew in each forward pass, norms
in separate steps), PuLID's cross-attention with keys and values recomputed in each step, and true CFG as
two passes one after the other. Takes the weights of diffusers' model, renamed and joined as in BFL's files.

Stays as it is: nothing here may be made faster. Sources: docs/spec/PULID_SPEC.md, sections 5 to 8,
https://github.com/black-forest-labs/flux and https://github.com/ToTheBeginning/PuLID (both Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.random_model import Given

HEAD_DIM = 128
ROTARY_AXES = (16, 56, 56)
ROTARY_THETA = 10_000
SINUSOIDS = 256
EPS = 1e-6
DOUBLE_INTERVAL, SINGLE_INTERVAL = 2, 4


class ReferenceFlux:
    """The transformer with PuLID's attentions. `dtype` is that of the weights here, and of the arithmetic."""

    def __init__(self, transformer: nn.Module, attentions: nn.ModuleList, dtype: torch.dtype) -> None:
        self.weights = {name: tensor.to(dtype) for name, tensor in bfl_weights(transformer).items()}
        self.attentions = attentions
        self.double_blocks = len(transformer.transformer_blocks)  # type: ignore[arg-type]
        self.single_blocks = len(transformer.single_transformer_blocks)  # type: ignore[arg-type]

    def __call__(
        self,
        image: Tensor,  # (rows, image tokens, 64)
        image_ids: Tensor,  # (image tokens, 3)
        text: Tensor,  # (rows, text tokens, 4096)
        timestep: Tensor,  # (rows,)
        guidance: Tensor,  # (rows,)
        pooled: Tensor,  # (rows, 768)
        identity: Tensor | None,  # (rows, 32, 2048)
        id_weight: float,
    ) -> Tensor:  # (rows, image tokens, 64)
        image = self.linear(image, "img_in")
        vector = self.mlp(sinusoids(timestep), "time_in")
        vector = vector + self.mlp(sinusoids(guidance), "guidance_in")
        vector = vector + self.mlp(pooled, "vector_in")
        length = text.shape[1]
        text = self.linear(text, "txt_in")
        rotary = rotary_matrices(torch.cat((image_ids.new_zeros(length, 3), image_ids)))

        attention = 0
        for number in range(self.double_blocks):
            image, text = self.double_block(f"double_blocks.{number}", image, text, vector, rotary)
            if number % DOUBLE_INTERVAL == 0 and identity is not None:
                image = image + id_weight * self.attentions[attention](identity, image)
                attention += 1
        both = torch.cat((text, image), dim=1)
        for number in range(self.single_blocks):
            both = self.single_block(f"single_blocks.{number}", both, vector, rotary)
            image, text = both[:, length:], both[:, :length]
            if number % SINGLE_INTERVAL == 0 and identity is not None:
                image = image + id_weight * self.attentions[attention](identity, image)
                attention += 1
            both = torch.cat((text, image), dim=1)
        return self.last_layer(both[:, length:], vector)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.silu(self.linear(x, f"{name}.in_layer")), f"{name}.out_layer")

    def modulation(self, vector: Tensor, name: str, count: int) -> tuple[Tensor, ...]:
        return self.linear(F.silu(vector), name)[:, None].chunk(count, dim=-1)

    def double_block(
        self, name: str, image: Tensor, text: Tensor, vector: Tensor, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        sides = {"img": image, "txt": text}
        changes = {side: self.modulation(vector, f"{name}.{side}_mod.lin", 6) for side in sides}
        heads = {side: self.query_key_value(f"{name}.{side}", x, changes[side]) for side, x in sides.items()}
        query, key, value = (
            torch.cat((t, i), dim=2) for t, i in zip(heads["txt"], heads["img"], strict=True)
        )
        mixed = attend(query, key, value, rotary)
        length = text.shape[1]
        sides["txt"], sides["img"] = (
            self.after_attention(f"{name}.{side}", sides[side], part, changes[side])
            for side, part in (("txt", mixed[:, :length]), ("img", mixed[:, length:]))
        )
        return sides["img"], sides["txt"]

    def query_key_value(self, name: str, x: Tensor, changes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shift, scale = changes[:2]
        query, key, value = by_head(self.linear((1 + scale) * norm(x) + shift, f"{name}_attn.qkv"))
        return (*self.normed(f"{name}_attn", query, key), value)

    def normed(self, name: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (
            rms_norm(query, self.weights[f"{name}.norm.query_norm.scale"]),
            rms_norm(key, self.weights[f"{name}.norm.key_norm.scale"]),
        )

    def after_attention(self, name: str, x: Tensor, mixed: Tensor, changes: Sequence[Tensor]) -> Tensor:
        _, _, gate, shift, scale, mlp_gate = changes
        x = x + gate * self.linear(mixed, f"{name}_attn.proj")
        hidden = self.linear((1 + scale) * norm(x) + shift, f"{name}_mlp.0")
        return x + mlp_gate * self.linear(F.gelu(hidden, approximate="tanh"), f"{name}_mlp.2")

    def single_block(self, name: str, x: Tensor, vector: Tensor, rotary: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vector, f"{name}.modulation.lin", 3)
        hidden = self.linear((1 + scale) * norm(x) + shift, f"{name}.linear1")
        fused, mlp = hidden.split([3 * x.shape[-1], hidden.shape[-1] - 3 * x.shape[-1]], dim=-1)
        query, key, value = by_head(fused)
        query, key = self.normed(name, query, key)
        mixed = attend(query, key, value, rotary)
        joined = torch.cat((mixed, F.gelu(mlp, approximate="tanh")), dim=2)
        return x + gate * self.linear(joined, f"{name}.linear2")

    def last_layer(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.modulation(vector, "final_layer.adaLN_modulation.1", 2)
        return self.linear((1 + scale) * norm(x) + shift, "final_layer.linear")


def denoise(flux: ReferenceFlux, given: Given, *, conditions: torch.dtype | None = None) -> Tensor:
    """Packed latents after the last step, in the dtype of the noise.

    `conditions`: round times and guidance as that dtype would, whatever the arithmetic is in.
    """
    x = given.noise
    rows = x.shape[0]

    def condition(value: float) -> Tensor:
        rounded = value if conditions is None else as_in(conditions, value)
        return torch.full((rows,), rounded, dtype=x.dtype, device=x.device)

    def velocity(t: float, text: Tensor, pooled: Tensor, identity: Tensor | None) -> Tensor:
        return flux(
            x,
            given.image_ids,
            text.expand(rows, -1, -1),
            condition(t),
            condition(given.guidance),
            pooled.expand(rows, -1),
            None if identity is None else identity.expand(rows, -1, -1),
            given.id_weight,
        )

    for t_now, t_next in zip(given.times[:-1], given.times[1:], strict=True):
        predicted = velocity(t_now, given.text, given.pooled, given.identity)
        if given.negative is not None:
            text, pooled, nobody = given.negative
            negative = velocity(t_now, text, pooled, nobody)
            predicted = negative + given.true_cfg * (predicted - negative)
        x = x + (t_next - t_now) * predicted
    return x


def as_in(dtype: torch.dtype, value: float) -> float:
    """A thousandth of 1000 times the value, computed in `dtype`: what the model is told there."""
    return float(torch.tensor(value, dtype=dtype) * 1000) / 1000


# ---- the parts of a block ----


def sinusoids(t: Tensor) -> Tensor:
    """(rows,) -> (rows, 256), cosines first, in the dtype of t."""
    half = SINUSOIDS // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = (1000 * t)[:, None].float() * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(t)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + EPS)).to(x.dtype) * scale


def by_head(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, tokens, 3 * heads * 128) -> query, key and value, (rows, heads, tokens, 128) each."""
    query, key, value = fused.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
    return query, key, value


def rotary_matrices(ids: Tensor) -> Tensor:
    """(tokens, 3) -> (tokens, 64, 2, 2): one turn for each pair of channels, made in float64."""
    parts = []
    for axis, size in enumerate(ROTARY_AXES):
        frequency = ROTARY_THETA ** -(torch.arange(0, size, 2, dtype=torch.float64, device=ids.device) / size)
        angle = ids[:, axis, None].double() * frequency
        parts.append(torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=-1))
    return torch.cat(parts, dim=-2).unflatten(-1, (2, 2)).float()


def turned(x: Tensor, rotary: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (rotary[..., 0] * pairs[..., 0] + rotary[..., 1] * pairs[..., 1]).flatten(-2).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, rotary: Tensor) -> Tensor:
    """-> (rows, tokens, heads * 128)."""
    mixed = F.scaled_dot_product_attention(turned(query, rotary), turned(key, rotary), value)
    return mixed.transpose(1, 2).flatten(2)


# ---- weights, in BFL's names ----

_COPIED = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {  # BFL's name -> what is joined along the outputs
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_SINGLE_NORMS = {
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}


def bfl_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The weights of diffusers' FluxTransformer2DModel; what BFL joins is a copy, the rest is shared."""
    state = transformer.state_dict()
    joined = {name: (source,) for name, source in _COPIED.items()}
    scales = {}
    for ours, theirs, table, norms in (
        ("transformer_blocks", "double_blocks", _DOUBLE, _DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", _SINGLE, _SINGLE_NORMS),
    ):
        for number in range(len(getattr(transformer, ours))):
            for name, sources in table.items():
                joined[f"{theirs}.{number}.{name}"] = tuple(f"{ours}.{number}.{s}" for s in sources)
            for name, source in norms.items():
                scales[f"{theirs}.{number}.{name}"] = state[f"{ours}.{number}.{source}"]
    weights = {
        f"{name}.{kind}": torch.cat([state[f"{source}.{kind}"] for source in sources])
        if len(sources) > 1
        else state[f"{sources[0]}.{kind}"]
        for name, sources in joined.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):  # scale before shift there, shift before scale here
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        weights[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat((shift, scale))
    return {**weights, **scales}
