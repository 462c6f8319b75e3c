"""A FLUX transformer whose blocks are quantised, as one safetensors file.

diffusers' names. The weight of each linear in the blocks is e4m3, (out, in), with its scales, (out, 1) in
float32, beside it as `weight_scale`; everything else has the precision that it had. The file's metadata say
so under KEY: a file without is none of these, whatever it holds.

Written tensor by tensor, so that the host needs memory for one. Does not know where files come from.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from pulid.errors import WeightsMissing
from pulid.flux.fp8 import SCALE, block_linears, expect_scales
from pulid.flux.kernels.plain import E4M3, as_rows
from pulid.state_files import REMEDY, metadata_of, read_state
from pulid.strict_load import load_strictly

KEY, FORM = "flux_pulid_quantised", "e4m3-by-row"
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    E4M3: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

OnTensor = Callable[[int], None]  # hears how many bytes of the source were read


def is_one(path: Path) -> bool:
    """Raises WeightsMissing for a file that cannot be read."""
    return path.is_file() and path.suffix == ".safetensors" and KEY in metadata_of(path)


def read(network: FluxTransformer2DModel, path: Path) -> None:
    """Put the file's tensors into a network without weights. Raises WeightsMissing."""
    form = metadata_of(path)[KEY]
    if form != FORM:
        raise WeightsMissing(
            f"{path} is quantised as {form[:40]!a}, which this version does not read. {REMEDY}"
        )
    state = read_state(path)
    names = [name for name, _ in block_linears(network)]
    wanted = dict.fromkeys((f"{n}.weight" for n in names), E4M3)
    wanted |= dict.fromkeys((f"{n}.{SCALE}" for n in names), torch.float32)
    wrong = [name for name, dtype in wanted.items() if name not in state or state[name].dtype != dtype]
    if wrong:
        raise WeightsMissing(
            f"{path} lacks {len(wrong)} of its quantised weights and scales, or has them in another"
            f" precision ({wrong[0]}). Make it anew with `flux-pulid weights convert --to fp8`."
        )
    expect_scales(network)
    load_strictly(network, state, "quantised FLUX transformer", file=path)


def write(
    network: FluxTransformer2DModel, path: Path, made_from: str, on_tensor: OnTensor = lambda size: None
) -> None:
    """Quantise a network whose weights are in full precision. The file appears whole, or not at all.

    The network keeps its weights. Raises OSError.
    """
    quantised = {f"{name}.weight" for name, _ in block_linears(network)}
    tensors = dict(network.state_dict())
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(tensors, quantised, made_from))
            for name, tensor in tensors.items():
                for piece in _pieces(name, tensor, quantised):
                    file.write(piece.contiguous().view(torch.uint8).numpy().data)
                on_tensor(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pieces(name: str, tensor: Tensor, quantised: set[str]) -> Iterator[Tensor]:
    """What is written of a tensor: itself, or values and scales."""
    if name in quantised:
        yield from as_rows(tensor)
    else:
        yield tensor


def _header(tensors: dict[str, Tensor], quantised: set[str], made_from: str) -> bytes:
    """Source: https://github.com/huggingface/safetensors#format."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", KEY: FORM, "made_from": made_from}}
    end = 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        of_scales = (f"{name.removesuffix('weight')}{SCALE}", torch.float32, [shape[0], 1])
        for key, dtype, form in (
            ((name, E4M3, shape), of_scales) if name in quantised else ((name, tensor.dtype, shape),)
        ):
            size = dtype.itemsize * torch.Size(form).numel()
            entries[key] = {"dtype": _NAMES[dtype], "shape": form, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
