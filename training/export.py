"""Puts what was learned into the one file that the tiny profile reads, in bfloat16, with its words.

Run: python -m training.export
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pulid.load import pulid_modules
from pulid.tiny import FILE
from pulid.tiny_model import TOKENIZER
from training.learning.painting import Studio
from training.learning.words import tokenizer

LARGEST = 12_000_000  # bytes
_LICENCE = "Apache-2.0; trained on drawings made by code, see docs/tiny-model.md"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, default=FILE)
    file = arguments.parse_args(argv).out
    student = Studio.of_this_run().student
    networks = student.networks
    del networks.autoencoder.encoder
    parts: dict[str, nn.Module] = {
        "transformer": networks.transformer,
        "autoencoder": networks.autoencoder,
        "pulid": pulid_modules(networks),
        "t5": student.t5,
        "clip": student.clip,
    }
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in _saved(module)}
    file.parent.mkdir(exist_ok=True)
    save_file(state, file, {TOKENIZER: tokenizer().to_str(), "license": _LICENCE})
    size = file.stat().st_size
    print(f"{file}: {len(state)} tensors, {size / 1e6:.1f} MB")
    if size > LARGEST:
        raise SystemExit(f"{file} has more than the {LARGEST / 1e6:.0f} MB that the package may carry.")


def _saved(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Each tensor once, as it is computed with."""
    seen: set[int] = set()
    found = []
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found.append((name, tensor.detach().to(torch.bfloat16).contiguous()))
    return found


if __name__ == "__main__":
    main()
