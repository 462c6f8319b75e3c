"""Put a state dict into a module: every key, every shape, or an error that names what is wrong.

Knows nothing of files but their names, for the errors. Works on modules built under
`torch.device("meta")`: tensors are assigned, not copied, so nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pulid.errors import WeightsMissing
from pulid.state_files import REMEDY

Shapes = Mapping[str, tuple[int, ...]]

READABLE = {torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_SHOWN = 4  # how many keys an error names
# By what quantised files call the scales beside their weights; without them the weights mean nothing.
_SCALES = (
    *("scale_weight", "weight_scale", "weight_scale_inv", "scale_input", "input_scale"),
    *("scaled_fp8", "comfy_quant", "qweight", "absmax", "quant_map"),
)


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    *,
    file: Path | None = None,
    of_any_kind: Collection[str] = (),
) -> None:
    """Assign `state` to `module`. Raises WeightsMissing unless keys and shapes are exactly the module's.

    `of_any_kind`: keys whose dtype the caller has looked at.
    """
    check_strictly(shapes_of(module.state_dict()), state, what, file=file, of_any_kind=of_any_kind)
    module.load_state_dict(state, strict=True, assign=True)


def check_strictly(
    wanted: Shapes,
    state: Mapping[str, Tensor],
    what: str,
    *,
    file: Path | None,
    of_any_kind: Collection[str] = (),
) -> None:
    """Raise WeightsMissing unless `state` has exactly the `wanted` names and shapes, in dtypes we read."""
    where = "This" if file is None else str(file)
    quantised = [key for key in state.keys() - wanted.keys() if key.endswith(_SCALES)]
    if quantised:
        raise WeightsMissing(
            f"{where} is quantised in a form that this server does not read: scales lie beside its weights"
            f" ({_some(sorted(quantised))}). Of fp8 files only plain casts are read."
            " Use such a file, or the bfloat16 one that `flux-pulid weights fetch` brings."
        )
    judged = {key: shape for key, shape in wanted.items() if key not in of_any_kind}
    problems = [
        _listed("keys are missing", sorted(wanted.keys() - state.keys())),
        _listed("keys are unknown", sorted(state.keys() - wanted.keys())),
        _listed("shapes differ", _shape_differences(wanted, state)),
        _listed(
            "tensors are of a kind that is not read",
            _unreadable(judged, state),
        ),
    ]
    found = "; ".join(p for p in problems if p)
    if found:
        raise WeightsMissing(f"{where} is not the {what} checkpoint that was expected: {found}. {REMEDY}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _shape_differences(wanted: Shapes, state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} is {tuple(state[key].shape)}, expected {wanted[key]}"
        for key in sorted(wanted.keys() & state.keys())
        if tuple(state[key].shape) != wanted[key]
    ]


def _unreadable(wanted: Shapes, state: Mapping[str, Tensor]) -> list[str]:
    """Counters, which have no dimensions, may be whole numbers."""
    return [
        f"{key} is {str(state[key].dtype).removeprefix('torch.')}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].dtype not in READABLE and wanted[key]
    ]


def _listed(title: str, items: Iterable[str]) -> str:
    names = list(items)
    return f"{len(names)} {title} ({_some(names)})" if names else ""


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
