"""A transformer's checkpoint -> its quantised copy, on the CPU and without an engine.

Knows which network a file holds. Does not know the weights folder: the caller hands in paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pulid.errors import WeightsMissing
from pulid.flux import quantised_file
from pulid.load import read_transformer
from pulid.parts import FLUX_DEV, Architecture, build_networks
from pulid.profiles import LinearForm


def quantise_file(
    source: Path,
    target: Path,
    form: LinearForm,
    *,
    made_from: str,
    on_bytes: Callable[[int], None] = lambda count: None,
    architecture: Architecture = FLUX_DEV,
) -> None:
    """Write `target`, which appears whole or not at all. `on_bytes` hears what was read.

    Raises WeightsMissing for a source that is no transformer or quantised already, and OSError.
    """
    if quantised_file.is_one(source):
        raise WeightsMissing(f"{source} is quantised already. Name the file that it was made from.")
    network = build_networks(architecture).transformer
    read_transformer(network, source)
    quantised_file.write(network, target, form, made_from, on_bytes)
