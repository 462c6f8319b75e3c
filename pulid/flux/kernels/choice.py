"""Which form of each kernel a device runs: Triton where it is proven there, else plain torch.

On a CUDA device each Triton form is compiled and held against the plain one, on random data of the
network's own width, before its first use. One that does not compile, or computes something else, is
left aside for good, and `notes` says so. On the CPU nothing of Triton is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pulid.flux.kernels import plain
from pulid.flux.kernels.samples import SAMPLES, Draw, Sizes

Form = Callable[..., Any]
Heads = tuple[Tensor, Tensor, Tensor]
Input = Tensor | plain.Rows  # of a linear
Outputs = Tensor | tuple[Any, ...]  # of a kernel

FILES = {  # where the Triton form of each kernel is
    "modulate": "modulate",
    "gated": "gate",
    "gated_modulate": "gate",
    "own_heads": "heads",
    "joint_heads": "heads",
    "beside_gelu": "gelu",
    "head_softmax": "softmax",
}
# Which kernel takes whose place where the linear behind it takes rows of eight bits.
AS_ROWS = {
    "as_input": "as_rows",
    "modulate": "modulate_rows",
    "gated_modulate": "gated_modulate_rows",
    "gelu": "gelu_rows",
    "beside_gelu": "beside_gelu_rows",
}
ALL_FILES = {**FILES, **dict.fromkeys(AS_ROWS.values(), "rows"), "int8_linear": "linear"}
EXACT = {"gated"}  # bit for bit; the others sum or divide in an order of their own
# Relative L2. In bfloat16 a few values in a thousand may round the other way; a wrong one is far off.
# In e4m3 such a value moves by a sixteenth, in int8 by one of up to 127.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-3, plain.E4M3: 5e-3, plain.INT8: 2e-3}
CHECKED = (
    {"batch": 1, "image": 37},
    {"batch": 2, "image": 64},
)  # odd sizes, and those of 16 bytes' multiples


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One form of each kernel, and the linear that takes what they give; as in `plain`."""

    modulate: Callable[[Tensor, Tensor, Tensor], Input] = plain.modulate
    gated: Callable[[Tensor, Tensor, Tensor], Tensor] = plain.gated
    gated_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Input]] = (
        plain.gated_modulate
    )
    own_heads: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Heads] = plain.own_heads
    joint_heads: Callable[..., Heads] = plain.joint_heads
    beside_gelu: Callable[[Tensor, Tensor], Input] = plain.beside_gelu
    gelu: Callable[[Tensor], Input] = plain.gelu
    as_input: Callable[[Tensor], Input] = plain.as_input
    linear: Callable[[Any, Any, Tensor], Tensor] = F.linear  # of an Input, and a weight of the same kind
    head_softmax: Callable[[Tensor, Tensor, int], Tensor] = plain.head_softmax
    notes: Mapping[str, str] = field(default_factory=dict)  # kernel: "triton", or why it is plain

    def described(self) -> str:
        """One line for `EngineInfo.details`."""
        return ", ".join(f"{name}: {note}" for name, note in self.notes.items()) or "plain"


PLAIN = Kernels()


def choose(device: torch.device, dtype: torch.dtype, *, heads: int, head_dim: int) -> Kernels:
    """The kernels for a transformer of this width and precision. On a CUDA device this compiles them."""
    forms, notes = _chosen(FILES, device, dtype, heads, head_dim)
    return Kernels(**forms, notes=notes) if notes else PLAIN


def in_fp8(
    kernels: Kernels,
    linear: Callable[[Any, Any, Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    head_dim: int,
) -> Kernels:
    """The same for blocks whose linears are in fp8: each quantises what it gives to `linear`."""
    forms, notes = _chosen(AS_ROWS.values(), device, dtype, heads, head_dim)
    given = {field: forms[name] for field, name in AS_ROWS.items()}
    return replace(kernels, linear=linear, notes={**kernels.notes, **notes}, **given)


def in_int8(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, *, heads: int, head_dim: int
) -> Kernels:
    """The same for blocks whose linears are in int8."""
    names = [*AS_ROWS.values(), "int8_linear"]
    forms, notes = _chosen(names, device, dtype, heads, head_dim, to=plain.INT8)
    given = {field: forms[name] for field, name in AS_ROWS.items()}
    return replace(kernels, linear=forms["int8_linear"], notes={**kernels.notes, **notes}, **given)


def _chosen(
    names: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    head_dim: int,
    to: torch.dtype | None = None,
) -> tuple[dict[str, Form], dict[str, str]]:
    """The form of each kernel, and on a CUDA device a note on it. `to`: of rows, if not e4m3."""
    if device.type != "cuda":
        return {name: _made_for(to, name, getattr(plain, name)) for name in names}, {}
    forms, notes = {}, {}
    with torch.cuda.device(device):  # Triton launches on the current device
        for name in names:
            inputs = [
                SAMPLES[name](Draw(device, dtype), Sizes(heads=heads, head_dim=head_dim, **sizes))
                for sizes in CHECKED
            ]
            forms[name], notes[name] = checked(name, partial(triton_form, name), inputs, to)
    return forms, notes


def _made_for(to: torch.dtype | None, name: str, form: Form) -> Form:
    return form if to is None or name not in AS_ROWS.values() else partial(form, to=to)


def triton_form(name: str) -> Form:
    """Raises ImportError where triton is not installed."""
    form: Form = getattr(import_module(f"pulid.flux.kernels.{ALL_FILES[name]}"), name)
    return form


def checked(
    name: str, load: Callable[[], Form], inputs: Iterable[tuple[Any, ...]], to: torch.dtype | None = None
) -> tuple[Form, str]:
    """The form that `load` gives if it computes what the plain form does, else the plain form; and a note."""
    definition = _made_for(to, name, getattr(plain, name))
    try:
        form = _made_for(to, name, load())
        for arguments in inputs:
            expected = definition(*arguments)
            _poison(expected)
            if not _agree(name, form(*arguments), expected):
                return definition, "plain (the Triton form computed something else)"
    except torch.OutOfMemoryError:
        raise
    except Exception as exc:  # Triton, its compiler and the driver raise what they like
        return definition, f"plain ({type(exc).__name__} in the Triton form)"
    return form, "triton"


def _poison(expected: Outputs) -> None:
    """Leave NaN in the memory that the next results will be given: what is not written then shows.

    As bytes: all ones are NaN in every precision.
    """
    outputs = _tensors(expected)
    for size in (sum(x.nbytes for x in outputs), *(x.nbytes for x in outputs)):
        torch.full((size,), 255, dtype=torch.uint8, device=outputs[0].device)


def _agree(name: str, got: Outputs, expected: Outputs) -> bool:
    pairs = zip(_tensors(got), _tensors(expected), strict=True)
    return all(agrees(one, other, exactly=name in EXACT) for one, other in pairs)


def _tensors(outputs: Outputs) -> tuple[Tensor, ...]:
    """One after the other, however deep they lie."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(tensor for output in outputs for tensor in _tensors(output))


def agrees(got: Tensor, expected: Tensor, *, exactly: bool) -> bool:
    """Equal, or within the tolerance of its precision. NaN never agrees."""
    if exactly:
        return torch.equal(got, expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    return bool(error <= TOLERANCES[expected.dtype])
