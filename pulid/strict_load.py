"""Put a state dict into a module: every key, every shape, or an error that names what is wrong.

Knows nothing of files. Works on modules built under `torch.device("meta")`: tensors are assigned,
not copied, so nothing is allocated twice.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pulid.errors import WeightsMissing

_SHOWN = 4  # how many keys an error names


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Assign `state` to `module`. Raises WeightsMissing unless keys and shapes are exactly the module's."""
    wanted = module.state_dict()
    problems = [
        _listed("keys are missing", sorted(wanted.keys() - state.keys())),
        _listed("keys are unknown", sorted(state.keys() - wanted.keys())),
        _listed("shapes differ", _shape_differences(wanted, state)),
    ]
    found = "; ".join(p for p in problems if p)
    if found:
        raise WeightsMissing(f"This is not the {what} checkpoint that was expected: {found}.")
    module.load_state_dict(state, strict=True, assign=True)


def _shape_differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]


def _listed(title: str, items: Iterable[str]) -> str:
    names = list(items)
    if not names:
        return ""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {title} ({', '.join(names[:_SHOWN])}{more})"
