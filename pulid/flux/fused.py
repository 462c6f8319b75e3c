"""FLUX's blocks over diffusers' weights, written for few passes over memory.

Computes what `IdentityFlux` computes, and is called alike. Queries, keys and values are one GEMM; what
lies between GEMMs and attention is one kernel each (`kernels`); text and image are joined once before
the single blocks; modulation may come ready for the step (`modulation`). The blocks are functions of
tensors, so that a compiler makes one graph for all 19 and one for all 38, whatever the size; `Blocks`
says which form of them runs (`compiled`).

Knows: the arithmetic of the blocks, and after which an identity is added.
Does not know: faces, prompts, requests.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from pulid.flux.attention_backend import backend_for, cudnn_first
from pulid.flux.kernels.choice import Kernels, choose, in_fp8, in_int8
from pulid.flux.kernels.plain import Rows
from pulid.flux.modulation import ModulationTable, modulation, modulation_linears, modulation_table
from pulid.flux.packing import (
    DoubleWeights,
    SingleWeights,
    StreamWeights,
    block_without_modulation,
    double_weights,
    single_weights,
)
from pulid.flux.quantised import linears_of, scaled_linear
from pulid.flux.step_cache import Turn, carry_on
from pulid.flux.streaming import Slots, Streamed, module_in_slot, streamed, tuple_in_slot
from pulid.flux.transformer import (
    DOUBLE_INTERVAL,
    SINGLE_INTERVAL,
    IdentityFlux,
    IdentityResidual,
    Rotary,
    attention_count,
)
from pulid.profiles import TransformerForm

IDENTITY_EPS = 1e-5  # of the identity attention's norms; FLUX's own have 1e-6


Item = TypeVar("Item")
Items = Sequence[Item] | Streamed[Item]


class FoldedMaps(Protocol):
    """One identity attention as two matrices; docs/spec/PULID_SPEC.md, section 5."""

    @property
    def query_map(self) -> Tensor: ...  # (groups, dim, heads * n)
    @property
    def query_offset(self) -> Tensor: ...  # (groups, 1, heads * n), float32
    @property
    def value_map(self) -> Tensor: ...  # (groups, heads * n, dim)
    @property
    def heads(self) -> int: ...


@runtime_checkable
class FoldedResidual(Protocol):
    """An identity whose residuals are nothing but folded attentions."""

    @property
    def attentions(self) -> Sequence[FoldedMaps]: ...


class FusedFlux:
    """Predicts the velocity of a batch of rows. Make it when the transformer is where it will stay.

    `blocks` may be exchanged between two calls: the weights are theirs alike.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        kernels: Kernels | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        """Packs the transformer's projections, and on a CUDA device compiles and checks the kernels."""
        self.transformer = transformer
        self.blocks = blocks or PLAIN_BLOCKS
        config, weight = transformer.config, transformer.x_embedder.weight
        width = {"heads": config.num_attention_heads, "head_dim": config.attention_head_dim}
        self.kernels = kernels or choose(weight.device, weight.dtype, **width)
        self._linears = linears_of(transformer)
        self._block_kernels = self.kernels
        if self._linears == "fp8":
            self._block_kernels = in_fp8(self.kernels, scaled_linear, weight.device, weight.dtype, **width)
        elif self._linears == "int8":
            self._block_kernels = in_int8(self.kernels, weight.device, weight.dtype, **width)
        self._doubles: Items[DoubleWeights] = double_weights(transformer)
        self._singles: Items[SingleWeights] = single_weights(transformer)
        self._modulation: Items[nn.Linear] = modulation_linears(transformer)
        torch.cuda.empty_cache()  # of the single matrices: each is too small to hold a packed one
        self._widths = [linear.out_features for linear in self._modulation]
        self.attention_count = attention_count(len(self._doubles), len(self._singles))

    def stream(
        self,
        slots: Slots,
        *,
        doubles: Collection[int],
        singles: Collection[int],
        modulation: Collection[int],
    ) -> None:
        """From now on these blocks, and linears of `modulation_linears`, come from the host in each pass.

        The slots must hold any of them. What was given for a block of a network is left without memory.
        """
        transformer = self.transformer
        for blocks, chosen in (
            (transformer.transformer_blocks, doubles),
            (transformer.single_transformer_blocks, singles),
        ):
            for number in chosen:
                block_without_modulation(blocks[number]).to("meta")
        # Nobody else holds the lists: what has gone to the host's pinned memory leaves the other at once.
        doubles_here, self._doubles = [*self._doubles], []
        singles_here, self._singles = [*self._singles], []
        self._doubles = streamed(doubles_here, doubles, slots, tuple_in_slot)
        self._singles = streamed(singles_here, singles, slots, tuple_in_slot)
        self._modulation = streamed([*self._modulation], modulation, slots, module_in_slot)

    def weights(self) -> Iterator[Tensor]:
        """All that the blocks are given of them."""
        streams = (stream for double in self._doubles for stream in double)
        for block in (*streams, *self._singles):
            for weight in block:
                yield from weight if isinstance(weight, Rows) else (weight,)

    def rotary(self, text_ids: Tensor, image_ids: Tensor) -> Rotary:
        """Rotary tables for text ids (text tokens, 3) and image ids (image tokens, 3)."""
        return IdentityFlux(self.transformer).rotary(text_ids, image_ids)

    def described(self) -> dict[str, str]:
        """What computes, for `EngineInfo.details`."""
        config, weight = self.transformer.config, self.transformer.x_embedder.weight
        return {
            "linears": str(weight.dtype).removeprefix("torch.") if self._linears == "full" else self._linears,
            **self._placement(),
            "kernels": self._block_kernels.described(),
            "blocks": self.blocks.note,
            "attention": backend_for(
                weight.device,
                weight.dtype,
                heads=config.num_attention_heads,
                head_dim=config.attention_head_dim,
            ),
        }

    def _placement(self) -> dict[str, str]:
        blocks = [part for part in (self._doubles, self._singles) if isinstance(part, Streamed)]
        if not blocks:
            return {}
        come, all_ = sum(part.streamed for part in blocks), sum(map(len, blocks))
        return {"placement": f"{come} of {all_} blocks come from the host in each step"}

    def modulation_table(self, times: Sequence[float], guidance: float, pooled: Tensor) -> ModulationTable:
        """The modulation of all steps of one branch of a request; pooled (1, 768)."""
        return modulation_table(self.transformer, self._modulation, times, guidance, pooled)

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
        modulation_rows: Tensor | None = None,  # (batch, width) of a table; None: made from the above
        turns: Sequence[Turn] | None = None,  # whose rows these are, where steps may be skipped; None: never
    ) -> Tensor:  # (batch, image tokens, 64)
        if modulation_rows is None:
            modulation_rows = modulation(self.transformer, self._modulation, timestep, guidance, pooled)
        # Triton launches on the current device.
        with torch.cuda.device_of(latents), cudnn_first(latents.device):
            through = self._through_blocks if turns is None else partial(self._skipping_blocks, turns)
            image = through(
                self.transformer.context_embedder(text),
                self.transformer.x_embedder(latents),
                modulation_rows,
                rotary,
                identity,
            )
            scale, shift = modulation_rows[:, -self._widths[-1] :].chunk(2, dim=-1)
            return self.transformer.proj_out(self.kernels.modulate(image, scale, shift))

    def _through_blocks(
        self,
        text: Tensor,
        image: Tensor,
        modulation_rows: Tensor,
        rotary: Rotary,
        identity: IdentityResidual | None,
        first: int = 0,
    ) -> Tensor:
        """The image tokens after the last block; from the double block `first` on."""
        modulations = modulation_rows.split(self._widths, dim=-1)
        for number, double in islice(enumerate(self._doubles), first, None):
            text, image = self._double(number, double, text, image, modulations, rotary, identity)
        length = text.shape[1]
        joint = torch.cat((text, image), dim=1)
        added = attention_count(len(self._doubles), 0)  # identity attentions, by the double blocks
        for number, single in enumerate(self._singles):
            own = modulations[2 * len(self._doubles) + number]
            joint = self.blocks.single(self._block_kernels, single, joint, own, *rotary)
            if identity is not None and number % SINGLE_INTERVAL == 0:
                self._add_identity(added, joint[:, length:], identity)
                added += 1
        return joint[:, length:]

    def _skipping_blocks(
        self,
        turns: Sequence[Turn],
        text: Tensor,
        before: Tensor,
        modulation_rows: Tensor,
        rotary: Rotary,
        identity: IdentityResidual | None,
    ) -> Tensor:
        """As `_through_blocks`; what is behind the first block only where it is needed."""
        modulations = modulation_rows.split(self._widths, dim=-1)
        double = next(iter(self._doubles))
        text, image = self._double(0, double, text, before, modulations, rotary, identity)

        def others(rows: slice, identity: IdentityResidual | None) -> Tensor:
            return self._through_blocks(
                text[rows], image[rows], modulation_rows[rows], rotary, identity, first=1
            )

        return carry_on(turns, before, image, others, identity)

    def _double(
        self,
        number: int,
        double: DoubleWeights,
        text: Tensor,
        image: Tensor,
        modulations: Sequence[Tensor],
        rotary: Rotary,
        identity: IdentityResidual | None,
    ) -> tuple[Tensor, Tensor]:
        """Text and image after this double block, and after the identity behind it."""
        of_text, of_image = modulations[2 * number : 2 * number + 2]
        text, image = self.blocks.double(self._block_kernels, double, text, image, of_text, of_image, *rotary)
        if identity is not None and number % DOUBLE_INTERVAL == 0:
            self._add_identity(number // DOUBLE_INTERVAL, image, identity)
        return text, image

    def _add_identity(self, index: int, image: Tensor, identity: IdentityResidual) -> None:
        """In place."""
        if isinstance(identity, FoldedResidual):
            maps = identity.attentions[index]
            attention = self.blocks.identity(
                self.kernels, image, maps.query_map, maps.query_offset, maps.heads
            )
            add_values(image, attention, maps.value_map)
        else:
            image += identity.residual(index, image)


FORMS: Mapping[TransformerForm, type[IdentityFlux] | type[FusedFlux]] = {
    "diffusers": IdentityFlux,
    "fused": FusedFlux,
}


def double_block(
    kernels: Kernels,
    weights: DoubleWeights,
    text: Tensor,  # (batch, text tokens, dim)
    image: Tensor,  # (batch, image tokens, dim)
    text_modulation: Tensor,  # (batch, 6 dim): shift, scale and gate of attention, then of the MLP
    image_modulation: Tensor,  # alike
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Text and image after a double block."""
    query, key, value = kernels.joint_heads(
        _projected(kernels, weights.text, text, text_modulation),
        _projected(kernels, weights.image, image, image_modulation),
        (weights.text.norm_q, weights.text.norm_k),
        (weights.image.norm_q, weights.image.norm_k),
        cos,
        sin,
    )
    attention = _attention(query, key, value)
    length = text.shape[1]
    return (
        _after_attention(kernels, weights.text, text, attention[:, :length], text_modulation),
        _after_attention(kernels, weights.image, image, attention[:, length:], image_modulation),
    )


def _projected(kernels: Kernels, weights: StreamWeights, stream: Tensor, modulation: Tensor) -> Tensor:
    """(batch, tokens, 3 dim)."""
    shift, scale, *_ = modulation.chunk(6, dim=-1)
    return kernels.linear(kernels.modulate(stream, scale, shift), weights.qkv, weights.qkv_bias)


def _after_attention(
    kernels: Kernels, weights: StreamWeights, stream: Tensor, attention: Tensor, modulation: Tensor
) -> Tensor:
    _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=-1)
    attended = kernels.linear(kernels.as_input(attention), weights.out, weights.out_bias)
    stream, normed = kernels.gated_modulate(stream, gate, attended, mlp_scale, mlp_shift)
    inner = kernels.gelu(kernels.linear(normed, weights.up, weights.up_bias))
    return kernels.gated(stream, mlp_gate, kernels.linear(inner, weights.down, weights.down_bias))


def single_block(
    kernels: Kernels,
    weights: SingleWeights,
    joint: Tensor,  # (batch, text and image tokens, dim)
    modulation: Tensor,  # (batch, 3 dim): shift, scale, gate
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """Text and image, joined, after a single block."""
    shift, scale, gate = modulation.chunk(3, dim=-1)
    projected = kernels.linear(kernels.modulate(joint, scale, shift), weights.into, weights.into_bias)
    split = 3 * joint.shape[-1]
    heads = kernels.own_heads(projected[..., :split], weights.norm_q, weights.norm_k, cos, sin)
    both = kernels.beside_gelu(_attention(*heads), projected[..., split:])
    return kernels.gated(joint, gate, kernels.linear(both, weights.out, weights.out_bias))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each (batch, heads, tokens, head_dim) -> (batch, tokens, dim); tokens before heads in memory."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def folded_attention(
    kernels: Kernels,
    image: Tensor,  # (batch, tokens, dim); batch is a multiple of groups
    query_map: Tensor,
    query_offset: Tensor,
    heads: int,
) -> Tensor:
    """How much each image token sees of each identity token: (groups, rows of a group, heads * n)."""
    dim = image.shape[-1]
    normed = F.layer_norm(image, (dim,), eps=IDENTITY_EPS).reshape(query_map.shape[0], -1, dim)
    return kernels.head_softmax(normed @ query_map, query_offset, heads)


def add_values(image: Tensor, attention: Tensor, value_map: Tensor) -> None:
    """Add to the image tokens, in place, what they see. The sum is part of the GEMM.

    Never compiled: a compiler would copy the tokens into its graph and out again.
    """
    batch, tokens, _ = image.shape
    rows = batch // value_map.shape[0]
    values = value_map[:, None].expand(-1, rows, -1, -1).flatten(0, 1)  # a copy if groups > 1
    image.baddbmm_(attention.reshape(batch, tokens, -1), values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The functions that the loop calls; each may be a compiled form of the one that is named here."""

    double: Callable[..., tuple[Tensor, Tensor]] = double_block
    single: Callable[..., Tensor] = single_block
    identity: Callable[..., Tensor] = folded_attention
    note: str = "plain"  # or "compiled", or why they are plain although they should be compiled


PLAIN_BLOCKS = Blocks()
