"""Which form of each kernel a device runs: Triton where it is proven there, else plain torch.

On a CUDA device each Triton form is compiled and held against the plain one, on random data of the
network's own width, before its first use. One that does not compile, or computes something else, is
left aside for good, and `notes` says so. On the CPU nothing of Triton is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pulid.flux.kernels import plain
from pulid.flux.kernels.samples import SAMPLES, Draw, Sizes

Form = Callable[..., Any]
Heads = tuple[Tensor, Tensor, Tensor]

FILES = {  # where the Triton form of each kernel is
    "modulate": "modulate",
    "gated": "gate",
    "gated_modulate": "gate",
    "own_heads": "heads",
    "joint_heads": "heads",
    "beside_gelu": "gelu",
    "head_softmax": "softmax",
}
EXACT = {"gated"}  # bit for bit; the others sum or divide in an order of their own
# Relative L2. In bfloat16 a few values in a thousand may round the other way; a wrong one is far off.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
CHECKED = (
    {"batch": 1, "image": 37},
    {"batch": 2, "image": 64},
)  # odd sizes, and those of 16 bytes' multiples


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One form of each kernel; signatures and shapes are those of `plain`."""

    modulate: Callable[[Tensor, Tensor, Tensor], Tensor] = plain.modulate
    gated: Callable[[Tensor, Tensor, Tensor], Tensor] = plain.gated
    gated_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = (
        plain.gated_modulate
    )
    own_heads: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Heads] = plain.own_heads
    joint_heads: Callable[..., Heads] = plain.joint_heads
    beside_gelu: Callable[[Tensor, Tensor], Tensor] = plain.beside_gelu
    head_softmax: Callable[[Tensor, Tensor, int], Tensor] = plain.head_softmax
    notes: Mapping[str, str] = field(default_factory=dict)  # kernel: "triton", or why it is plain

    def described(self) -> str:
        """One line for `EngineInfo.details`."""
        return ", ".join(f"{name}: {note}" for name, note in self.notes.items()) or "plain"


PLAIN = Kernels()


def choose(device: torch.device, dtype: torch.dtype, *, heads: int, head_dim: int) -> Kernels:
    """The kernels for a transformer of this width and precision. On a CUDA device this compiles them."""
    if device.type != "cuda":
        return PLAIN
    forms, notes = {}, {}
    with torch.cuda.device(device):  # Triton launches on the current device
        for name, draw_inputs in SAMPLES.items():
            inputs = [
                draw_inputs(Draw(device, dtype), Sizes(heads=heads, head_dim=head_dim, **sizes))
                for sizes in CHECKED
            ]
            forms[name], notes[name] = checked(name, partial(triton_form, name), inputs)
    return Kernels(**forms, notes=notes)


def triton_form(name: str) -> Form:
    """Raises ImportError where triton is not installed."""
    form: Form = getattr(import_module(f"pulid.flux.kernels.{FILES[name]}"), name)
    return form


def checked(name: str, load: Callable[[], Form], inputs: Iterable[tuple[Any, ...]]) -> tuple[Form, str]:
    """The form that `load` gives if it computes what the plain form does, else the plain form; and a note."""
    definition: Form = getattr(plain, name)
    try:
        form = load()
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


def _poison(expected: Tensor | tuple[Tensor, ...]) -> None:
    """Leave NaN in the memory that the next results will be given: what is not written then shows."""
    outputs = _tensors(expected)
    like = outputs[0]
    torch.full((sum(x.numel() for x in outputs),), float("nan"), dtype=like.dtype, device=like.device)


def _agree(name: str, got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    pairs = zip(_tensors(got), _tensors(expected), strict=True)
    return all(agrees(one, other, exactly=name in EXACT) for one, other in pairs)


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def agrees(got: Tensor, expected: Tensor, *, exactly: bool) -> bool:
    """Equal, or within the tolerance of its precision. NaN never agrees."""
    if exactly:
        return torch.equal(got, expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    return bool(error <= TOLERANCES[expected.dtype])
