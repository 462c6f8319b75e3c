"""The linears of FLUX's blocks in eight bits: weights quantised once by output row, activations by token.

In e4m3 (fp8) a product is one of tensor cores on a card, and on the CPU what it stands for: both sides times
their scales in float32. In int8 it is one of whole numbers anywhere (`kernels.plain.int8_linear`).
Embeddings, modulation, the last layer and the identity stay as they are.

Knows which linears those are, where their scales lie, and which cards can. Does not know blocks or files.
Decisions: docs/decisions/0017-fp8.md, docs/decisions/0023-int8.md
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from pulid.errors import DeviceUnavailable
from pulid.flux.kernels.plain import E4M3, INT8, Rows, as_rows, int8_linear
from pulid.profiles import LinearForm, SpeedProfile, why_not

PRECISIONS: Mapping[LinearForm, torch.dtype] = {"fp8": E4M3, "int8": INT8}  # of weights and activations
SCALE = "weight_scale"  # a buffer beside a quantised linear's weight, (out, 1), float32
# Relative L2 of a product on the card against the same numbers in float32: rounding of the result, and
# of the tensor cores' sums, which keep fewer bits.
TOLERANCE = 1e-2


# ---- which linears ----


def block_linears(transformer: FluxTransformer2DModel) -> Iterator[tuple[str, nn.Linear]]:
    """By name: the projections of attention and MLP of all blocks, and no modulation."""
    for kind in ("transformer_blocks", "single_transformer_blocks"):
        for number, block in enumerate(getattr(transformer, kind)):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith("norm"):
                    yield f"{kind}.{number}.{name}", module


def matrix(linear: nn.Linear) -> Tensor | Rows:
    """The weight as it is, or with its scales where it is quantised."""
    scale = getattr(linear, SCALE, None)
    return linear.weight.data if scale is None else Rows(linear.weight.data, scale)


def linears_of(transformer: FluxTransformer2DModel) -> LinearForm:
    """In which form the blocks' linears are."""
    for _, linear in block_linears(transformer):
        if hasattr(linear, SCALE):
            return next(form for form, dtype in PRECISIONS.items() if dtype is linear.weight.dtype)
    return "full"


def expect_scales(transformer: FluxTransformer2DModel) -> None:
    """Give each linear a place for its scales, without memory: a state dict then brings them."""
    for _, linear in block_linears(transformer):
        shape = (linear.out_features, 1)
        linear.register_buffer(SCALE, torch.empty(shape, dtype=torch.float32, device="meta"))


def quantise(linear: nn.Linear, weight: Tensor, to: torch.dtype) -> None:
    """Let it have `weight` (out, in) as rows, where the weight is."""
    linear.weight.data, scale = as_rows(weight, to)
    linear.register_buffer(SCALE, scale)


# ---- the product ----


def scaled_linear(x: Rows, weight: Rows, bias: Tensor) -> Tensor:
    """(..., in) rows and (out, in) rows, both e4m3 -> (..., out), in the bias's precision."""
    return _on_tensor_cores(x, weight, bias) if x.values.is_cuda else emulated_linear(x, weight, bias)


def emulated_linear(x: Rows, weight: Rows, bias: Tensor) -> Tensor:
    """The same in float32, on any device, of any rows."""
    return F.linear(dequantised(x), dequantised(weight), bias.float()).to(bias.dtype)


def dequantised(rows: Rows) -> Tensor:
    return rows.values.float() * rows.scale


def _on_tensor_cores(x: Rows, weight: Rows, bias: Tensor) -> Tensor:
    *outer, width = x.values.shape
    product = torch._scaled_mm(
        x.values.reshape(-1, width),
        weight.values.t(),
        scale_a=x.scale.reshape(-1, 1),
        scale_b=weight.scale.reshape(1, -1),
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=True,
    )
    return product.unflatten(0, outer)


# ---- which cards ----


def require_linears(profile: SpeedProfile, device: torch.device) -> None:
    """Raises DeviceUnavailable for a CUDA card that cannot, or that computes something else."""
    if device.type != "cuda" or profile.linears == "full":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if problem := why_not(profile, str(device), name, capability):
        raise DeviceUnavailable(problem)
    with torch.cuda.device(device):
        problem = _wrong_product(profile.linears, device)
    if problem:
        raise DeviceUnavailable(
            f"{device}, {name}: a trial product in {profile.linears} {problem}. Update the driver and torch"
            " (docs/deployment.md), or use the profile exact."
        )


def _wrong_product(form: LinearForm, device: torch.device) -> str:
    """What is wrong with one small product of random numbers; empty if nothing is."""
    draw = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(shape, generator=draw).to(device, torch.bfloat16)
        for shape in ((37, 3072), (512, 3072), (512,))
    )
    rows, matrix_rows = (as_rows(tensor, PRECISIONS[form]) for tensor in (x, weight))
    product = scaled_linear if form == "fp8" else int8_linear
    try:
        got = product(rows, matrix_rows, bias).float()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as exc:
        return f"failed ({next(iter(str(exc).splitlines()), 'no text')})"
    expected = emulated_linear(rows, matrix_rows, bias).float()
    error = float((got - expected).norm() / expected.norm())
    return "" if error <= TOLERANCE else f"was off by {error:.3g}"
