"""T5's matrices in int8: half their memory, and half of what is copied where its blocks come in turn.

Weights only: whole numbers and a scale for each output. A product takes activations in the precision they
have, and multiplies the scales into its result, so no weight is rounded a second time. T5 has a few channels
that are hundreds of times larger than the others; activations in 8 bits would lose those others.

Knows which matrices those are. Embeddings, norms and the bias of positions stay as they are. Does not know
files, devices, or who asks for it.
Decision: docs/decisions/0022-t5-in-int8.md
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from pulid.flux.kernels.plain import INT8, as_rows


class Int8Linear(nn.Linear):
    """x (..., in) -> (..., out), in x's precision.

    transformers asks `wo.weight` for its precision, and leaves the activations as they are for int8.
    """

    scale: Tensor  # (out,), float32

    def __init__(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """`weight` (out, in) is quantised where it is. `parameter`, of the linear that was here, takes it.

        So whoever goes through T5's parameters meanwhile goes on with it.
        """
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        values, scale = as_rows(weight, INT8)
        self.weight = parameter
        self.weight.data = values
        self.register_buffer("scale", scale.squeeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)).mul_(self.scale)


def t5_linears(t5: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """By name, of T5 or one of its blocks: attention's four projections and the three of the gated MLP."""
    for name, module in t5.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def quantise(t5: nn.Module, name: str, weight: Tensor) -> None:
    """Let the linear of that name have `weight` (out, in) in int8, where the weight is."""
    t5.set_submodule(name, Int8Linear(t5.get_parameter(f"{name}.weight"), weight))
