"""The peer's linears in fp8, as torchao quantises them: weights by output row, activations by token.

Whoever wants FLUX in fp8 from diffusers is told to use torchao; so this is what a careful user would build.
Knows torchao, the extra `gpu`, and nothing of rows, requests and times.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from pulid.flux.quantised import block_linears

# What torchao sets for a whole process when it quantises (`recommended_inductor_config_setter`). Here it
# is said for this row's graphs alone: the other rows in the process keep what the compiler comes with.
OPTIONS: Mapping[str, Any] = {
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
    "force_fuse_int_mm_with_mul": True,
    "triton.unique_kernel_names": True,
}


def why_not() -> str:
    """What to tell where there is no torchao; empty where there is."""
    if find_spec("torchao") is not None:
        return ""
    return "torchao is not installed: pip install -c configs/constraints.txt -e '.[gpu]'"


def quantise(transformer: nn.Module) -> None:
    """In place, the linears that this project has in fp8, too; the weights get memory of their own.

    Raises ValueError where torchao has left one as it was, which it does without a word for some shapes.
    """
    linears = dict(block_linears(transformer))
    if next(transformer.parameters()).is_cuda:
        _by_configuration(transformer, linears)
    else:
        _by_hand(linears)
    left = [name for name, linear in linears.items() if type(linear.weight) is nn.Parameter]
    if left:
        raise ValueError(f"torchao has left {len(left)} linears as they were, {left[0]} among them.")


def _by_configuration(transformer: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    quantize_(transformer, config, filter_fn=lambda module, name: name in linears)


def _by_hand(linears: Mapping[str, nn.Linear]) -> None:
    """What the configuration makes on a card. On a CPU it refuses, although torch multiplies there, too."""
    from torchao.quantization import Float8MMConfig, Float8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    for linear in linears.values():
        quantised = Float8Tensor.from_hp(
            linear.weight.data,
            granularity=PerRow(),
            mm_config=Float8MMConfig(use_fast_accum=True),
            act_quant_kwargs=QuantizeTensorToFloat8Kwargs(granularity=PerRow()),
        )
        linear.weight = nn.Parameter(quantised, requires_grad=False)
