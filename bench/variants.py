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
    "fused-compiled": {**_FUSED, "compiles": True},
    "all": {**_FUSED, "compiles": True, "captures": True, "decoder_form": "compiled"},
}
ALL = "all"


def variants_of(profile: SpeedProfile, names: Sequence[str]) -> list[SpeedProfile]:
    """The profile with each variant's fields, under a name that says so."""
    return [replace(profile, name=f"{profile.name}+{name}", **VARIANTS[name]) for name in names]


def variant_of(row: str) -> str | None:
    """Of a row's name; None for the profile as it is, and for rows that are no profile's."""
    _, plus, variant = row.partition("+")
    return variant if plus else None
