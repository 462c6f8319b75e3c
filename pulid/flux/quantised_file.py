"""A FLUX transformer whose blocks are quantised, as one safetensors file.

diffusers' names. The weight of each linear in the blocks is e4m3 or int8, (out, in), with its scales,
(out, 1) in float32, beside it as `weight_scale`; everything else has the precision that it had. The file's
metadata say so under KEY: a file without is none of these, whatever it holds.

Written tensor by tensor, so that the host needs memory for one. Does not know where files come from.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from pulid.errors import WeightsMissing
from pulid.flux.kernels.plain import E4M3, INT8, as_rows
from pulid.flux.quantised import PRECISIONS, SCALE, block_linears, expect_scales
from pulid.profiles import LinearForm
from pulid.state_files import REMEDY, metadata_of, read_state
from pulid.strict_load import load_strictly

KEY = "flux_pulid_quantised"
FORMS: Mapping[str, LinearForm] = {"e4m3-by-row": "fp8", "int8-by-row": "int8"}  # the key's values
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    E4M3: "F8_E4M3",
    INT8: "I8",
    torch.float8_e5m2: "F8_E5M2",
}

OnTensor = Callable[[int], None]  # hears how many bytes of the source were read


def is_one(path: Path) -> bool:
    """Raises WeightsMissing for a file that cannot be read."""
    return path.is_file() and path.suffix == ".safetensors" and KEY in metadata_of(path)


def read(network: FluxTransformer2DModel, path: Path) -> None:
    """Put the file's tensors into a network without weights. Raises WeightsMissing."""
    said = metadata_of(path)[KEY]
    if said not in FORMS:
        raise WeightsMissing(
            f"{path} is quantised as {said[:40]!a}, which this version does not read. {REMEDY}"
        )
    form = FORMS[said]
    state = read_state(path)
    names = [name for name, _ in block_linears(network)]
    wanted = dict.fromkeys((f"{n}.weight" for n in names), PRECISIONS[form])
    wanted |= dict.fromkeys((f"{n}.{SCALE}" for n in names), torch.float32)
    wrong = [name for name, dtype in wanted.items() if name not in state or state[name].dtype != dtype]
    if wrong:
        raise WeightsMissing(
            f"{path} lacks {len(wrong)} of its quantised weights and scales, or has them in another"
            f" precision ({wrong[0]}). Make it anew with `flux-pulid weights convert --to {form}`."
        )
    expect_scales(network)
    load_strictly(network, state, "quantised FLUX transformer", file=path, of_any_kind=wanted)


def write(
    network: FluxTransformer2DModel,
    path: Path,
    form: LinearForm,
    made_from: str,
    on_tensor: OnTensor = lambda size: None,
) -> None:
    """Quantise a network whose weights are in full precision. The file appears whole, or not at all.

    The network keeps its weights. Raises OSError.
    """
    quantised = {f"{name}.weight" for name, _ in block_linears(network)}
    tensors, to = dict(network.state_dict()), PRECISIONS[form]
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(tensors, quantised, form, made_from))
            for name, tensor in tensors.items():
                for piece in _pieces(tensor, to if name in quantised else None):
                    file.write(piece.contiguous().view(torch.uint8).numpy().data)
                on_tensor(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pieces(tensor: Tensor, to: torch.dtype | None) -> Iterator[Tensor]:
    """What is written of a tensor: itself, or values and scales."""
    if to is None:
        yield tensor
    else:
        yield from as_rows(tensor, to)


def _header(tensors: dict[str, Tensor], quantised: set[str], form: LinearForm, made_from: str) -> bytes:
    """Source: https://github.com/huggingface/safetensors#format."""
    said = next(name for name, of_name in FORMS.items() if of_name == form)
    entries: dict[str, object] = {"__metadata__": {"format": "pt", KEY: said, "made_from": made_from}}
    end = 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        of_scales = (f"{name.removesuffix('weight')}{SCALE}", torch.float32, [shape[0], 1])
        of_values = (name, PRECISIONS[form], shape)
        pieces = (of_values, of_scales) if name in quantised else ((name, tensor.dtype, shape),)
        for key, dtype, sides in pieces:
            size = dtype.itemsize * torch.Size(sides).numel()
            entries[key] = {"dtype": _NAMES[dtype], "shape": sides, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
