"""Ways to compute that a profile could take, measured beside it before it takes one.

A row of a variant is called ours-PROFILE+VARIANT. Knows which fields of a profile make a variant; what they
do stands in `pulid/profiles.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pulid.profiles import SpeedProfile

_FUSED: Mapping[str, Any] = {"transformer_form": "fused"}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "captured": {"captures": True},
    "fused": _FUSED,
    "fused-captured": {**_FUSED, "captures": True},
    "compiled": {**_FUSED, "compiles": True},
    "all": {**_FUSED, "compiles": True, "captures": True, "decoder_form": "compiled"},
}
ALL = "all"


def variants_of(profile: SpeedProfile, names: Sequence[str]) -> list[SpeedProfile]:
    """The profile in each of these variants, under a name that says so, and each form once.

    So a profile that is fused has no variant `fused`, and one that skips steps none that captures them.
    """
    forms: dict[SpeedProfile, str] = {profile: ""}
    for name in names:
        forms.setdefault(replace(profile, **_fields(profile, name)), name)
    return [replace(form, name=f"{profile.name}+{name}") for form, name in forms.items() if name]


def _fields(profile: SpeedProfile, variant: str) -> dict[str, Any]:
    """Those of the variant that the profile may have."""
    may_capture = profile.skip_threshold is None
    return {name: value for name, value in VARIANTS[variant].items() if may_capture or name != "captures"}


def variant_of(row: str) -> str | None:
    """Of a row's name; None for the profile as it is, and for rows that are no profile's."""
    _, plus, variant = row.partition("+")
    return variant if plus else None
