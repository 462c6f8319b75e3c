"""All of a request's modulation at once: what every block shifts, scales and gates by, in every step.

It depends on time, guidance and the pooled text only. So each of the 77 linears, 6.5 GB in bfloat16
together, is read once for a request, and not once for each step.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class ModulationTable:
    """One row for each step."""

    rows: Tensor  # (steps, width)

    def at(self, step: int) -> Tensor:
        """(1, width)."""
        return self.rows[step : step + 1]


def modulation_table(
    transformer: FluxTransformer2DModel,
    linears: Iterable[nn.Linear],
    times: Sequence[float],
    guidance: float,
    pooled: Tensor,
) -> ModulationTable:
    """For steps at `times` (1 .. 0) of one branch of a request; pooled (1, 768). `linears` as below."""
    timestep = torch.tensor(times).to(pooled)
    return ModulationTable(
        modulation(
            transformer,
            linears,
            timestep,
            torch.full_like(timestep, guidance),
            pooled.expand(len(times), -1),
        )
    )


def modulation(
    transformer: FluxTransformer2DModel,
    linears: Iterable[nn.Linear],  # those of `modulation_linears`, wherever their weights are
    timestep: Tensor,
    guidance: Tensor,
    pooled: Tensor,
) -> Tensor:
    """(rows,), (rows,) and (rows, 768) -> (rows, width), for the linears one after the other."""
    dtype = transformer.x_embedder.weight.dtype
    # First the model's dtype, then times 1000, in that dtype: the reference's rounding.
    condition = F.silu(
        transformer.time_text_embed(timestep.to(dtype) * 1000, guidance.to(dtype) * 1000, pooled)
    )
    return torch.cat([linear(condition) for linear in linears], dim=-1)


def modulation_linears(transformer: FluxTransformer2DModel) -> list[nn.Linear]:
    """In the order of use: text and image of each double block, each single block, the last norm."""
    doubles = (
        norm.linear for block in transformer.transformer_blocks for norm in (block.norm1_context, block.norm1)
    )
    singles = (block.norm.linear for block in transformer.single_transformer_blocks)
    return [*doubles, *singles, transformer.norm_out.linear]
