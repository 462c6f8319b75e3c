"""Identity cross-attention: the image tokens look at the identity tokens, in two proven forms.

`IdentityAttention` is one of the checkpoint's 20 modules, in the reference's arithmetic.
Keys and values depend on the identity only, so `fold` turns a module and an identity into two
matrices, A and B, once per request; a step is then LayerNorm, GEMM, softmax, GEMM: a quarter of
the work, and in bfloat16 a smaller error. Derivation: docs/spec/PULID_SPEC.md, section 5.

`FoldedIdentity` and `ReferenceIdentity` are what the block loop asks for residuals. Neither knows
faces, steps or block numbers. Paper: https://arxiv.org/abs/2404.16022
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


class IdentityAttention(nn.Module):
    """PuLID's PerceiverAttentionCA. No residual inside; the caller adds id_weight times the output.

    `norm1` is for the identity tokens and `norm2` for the image tokens, as the checkpoint names them.
    """

    def __init__(self, *, dim: int = 3072, dim_head: int = 128, heads: int = 16, kv_dim: int = 2048) -> None:
        super().__init__()
        inner = dim_head * heads  # 2048, not dim
        self.heads = heads
        self.dim_head = dim_head
        self.norm1 = nn.LayerNorm(kv_dim, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(kv_dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, id_tokens: Tensor, image: Tensor) -> Tensor:
        """(batch, n, kv_dim) and (batch, tokens, dim) -> (batch, tokens, dim)."""
        query = self._by_head(self.to_q(self.norm2(image)))
        key, value = (self._by_head(x) for x in self.to_kv(self.norm1(id_tokens)).chunk(2, dim=-1))
        scale = self.dim_head**-0.25  # on both sides: steadier in bfloat16 than on the product
        scores = (query * scale) @ (key * scale).transpose(-2, -1)
        attention = scores.float().softmax(dim=-1).to(scores.dtype)
        return self.to_out((attention @ value).transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, length, inner) -> (batch, heads, length, dim_head)."""
        return x.unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2)

    @torch.no_grad()
    def fold(self, id_tokens: Tensor, id_weight: float, dtype: torch.dtype) -> FoldedAttention:
        """Fold one identity (1, n, kv_dim) into A and B, in float32; stored in `dtype`."""
        tokens = F.layer_norm(
            id_tokens[0].float(),
            self.norm1.normalized_shape,
            self.norm1.weight.float(),
            self.norm1.bias.float(),
            self.norm1.eps,
        )
        key, value = (
            x.unflatten(-1, (self.heads, self.dim_head)).transpose(0, 1)  # (heads, n, dim_head)
            for x in (tokens @ self.to_kv.weight.float().T).chunk(2, dim=-1)
        )
        w_q = self.to_q.weight.float().unflatten(0, (self.heads, self.dim_head))  # (heads, dim_head, dim)
        w_o = self.to_out.weight.float().unflatten(1, (self.heads, self.dim_head)).permute(1, 2, 0)
        scores_map = (key @ w_q).flatten(0, 1).T * self.dim_head**-0.5  # M (dim, heads*n)
        return FoldedAttention(
            query_map=(self.norm2.weight.float()[:, None] * scores_map).to(dtype)[None],
            query_offset=(self.norm2.bias.float() @ scores_map)[None, None],
            value_map=((value @ w_o).flatten(0, 1) * id_weight).to(dtype)[None],
            heads=self.heads,
        )


@dataclass(frozen=True, slots=True)
class FoldedAttention:
    """One module with its identities and their weights folded in.

    A batch of images is split into `groups` equal runs of rows, each with an identity of its own.
    """

    query_map: Tensor  # A (groups, dim, heads*n)
    query_offset: Tensor  # a (groups, 1, heads*n), float32
    value_map: Tensor  # B (groups, heads*n, dim), id_weight inside
    heads: int

    def residual(self, image: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, dim); batch is a multiple of groups."""
        dim = image.shape[-1]
        grouped = F.layer_norm(image, (dim,), eps=LAYER_NORM_EPS).reshape(self.query_map.shape[0], -1, dim)
        scores = (grouped @ self.query_map).float() + self.query_offset
        attention = scores.unflatten(-1, (self.heads, -1)).softmax(dim=-1).flatten(-2).to(image.dtype)
        return (attention @ self.value_map).reshape(image.shape)

    def silent(self) -> FoldedAttention:
        """The same shape with a residual of exactly zero, for rows whose identity has not started."""
        return FoldedAttention(
            torch.zeros_like(self.query_map),
            torch.zeros_like(self.query_offset),
            torch.zeros_like(self.value_map),
            self.heads,
        )


@dataclass(frozen=True, slots=True)
class FoldedIdentity:
    """All cross-attentions of a request, folded."""

    attentions: tuple[FoldedAttention, ...]

    @classmethod
    def of(
        cls,
        modules: Sequence[IdentityAttention],
        id_tokens: Tensor,
        id_weight: float,
        dtype: torch.dtype,
    ) -> FoldedIdentity:
        return cls(tuple(module.fold(id_tokens, id_weight, dtype) for module in modules))

    def residual(self, index: int, image: Tensor) -> Tensor:
        return self.attentions[index].residual(image)

    def silent(self) -> FoldedIdentity:
        return FoldedIdentity(tuple(a.silent() for a in self.attentions))

    def beside(self, others: Sequence[FoldedIdentity]) -> FoldedIdentity:
        """Side by side: the first group of the batch sees this identity, the next ones the others."""
        attentions = zip(self.attentions, *(other.attentions for other in others), strict=True)
        return FoldedIdentity(
            tuple(
                FoldedAttention(
                    torch.cat([a.query_map for a in same_module]),
                    torch.cat([a.query_offset for a in same_module]),
                    torch.cat([a.value_map for a in same_module]),
                    same_module[0].heads,
                )
                for same_module in attentions
            )
        )


@dataclass(frozen=True, slots=True)
class ReferenceIdentity:
    """The same in the reference's form: keys and values recomputed in each call. For proofs and benches."""

    modules: Sequence[IdentityAttention]
    id_tokens: Tensor  # (groups, n, kv_dim)
    id_weight: Tensor  # (groups,)

    @classmethod
    def of(
        cls,
        modules: Sequence[IdentityAttention],
        id_tokens: Tensor,
        id_weight: float,
        dtype: torch.dtype,
    ) -> ReferenceIdentity:
        return cls(
            modules, id_tokens.to(dtype), torch.full((1,), id_weight, dtype=dtype, device=id_tokens.device)
        )

    def residual(self, index: int, image: Tensor) -> Tensor:
        rows_per_group = image.shape[0] // self.id_tokens.shape[0]
        id_tokens = self.id_tokens.repeat_interleave(rows_per_group, dim=0)
        id_weight = self.id_weight.repeat_interleave(rows_per_group)[:, None, None]
        return id_weight * self.modules[index](id_tokens, image)

    def silent(self) -> ReferenceIdentity:
        return ReferenceIdentity(self.modules, self.id_tokens, torch.zeros_like(self.id_weight))

    def beside(self, others: Sequence[ReferenceIdentity]) -> ReferenceIdentity:
        """Side by side: the first group of the batch sees this identity, the next ones the others."""
        return ReferenceIdentity(
            self.modules,
            torch.cat([self.id_tokens, *(other.id_tokens for other in others)]),
            torch.cat([self.id_weight, *(other.id_weight for other in others)]),
        )


class PreparedIdentity(Protocol):
    """An identity ready for the block loop, in either form."""

    def residual(self, index: int, image: Tensor) -> Tensor: ...
    def silent(self) -> Self: ...
    def beside(self, others: Sequence[Self]) -> Self: ...


FORMS: dict[str, type[FoldedIdentity] | type[ReferenceIdentity]] = {
    "folded": FoldedIdentity,
    "reference": ReferenceIdentity,
}
