"""What an operator may ask before the first picture: what torch and the libraries see of this machine.

Answers with plain data. Knows no settings, no limits and no verdicts: what is good enough is judged
in server/checks.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One CUDA device."""

    number: int  # as CUDA counts: after CUDA_VISIBLE_DEVICES
    name: str
    uuid: str  # as nvidia-smi writes it
    memory: int  # bytes
    capability: tuple[int, int]  # such as (9, 0)
    has_kernels: bool  # whether this build of torch can compute on it


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    version: str
    cuda: str | None  # the CUDA release it was built with; None: for the CPU alone
    cards: tuple[Card, ...]
    why_no_cards: str  # in torch's words; empty where there are some


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryFacts:
    torchvision: str  # what keeps it from loading; empty where nothing does
    torchvision_is_mended: bool  # its operators are replaced, because they do not fit this torch
    onnx_providers: tuple[str, ...]


def cuda_count() -> int:
    """How many CUDA cards torch sees; 0 where it was not built for CUDA."""
    return torch.cuda.device_count()


def torch_facts() -> TorchFacts:
    """Takes no memory of any card."""
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        cards=tuple(map(_card, range(cuda_count()))),
        why_no_cards="" if cuda_count() else _why_no_cards(),
    )


def _card(number: int) -> Card:
    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    return Card(
        number=number,
        name=properties.name,
        uuid=f"GPU-{properties.uuid}",
        memory=properties.total_memory,
        capability=capability,
        has_kernels=has_kernels(capability, torch.cuda.get_arch_list()),
    )


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether code built for these targets (sm_90, compute_120, ...) runs on a card of this capability.

    Machine code runs on the same major version from its own minor version up; PTX on anything newer.
    """
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(built_for)):
        target = (int(major), int(minor))
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def _why_no_cards() -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says the same in the exception
            torch.cuda.init()
    except (AssertionError, RuntimeError) as exc:
        return str(exc).partition("\n")[0]
    return "the driver shows none"


def library_facts() -> LibraryFacts:
    """Of the libraries whose builds can disagree with torch's or with one another's."""
    import onnxruntime

    problem = _torchvision_problem()
    return LibraryFacts(
        torchvision=problem,
        torchvision_is_mended=not problem and _torchvision_is_mended(),
        onnx_providers=tuple(onnxruntime.get_available_providers()),
    )


def _torchvision_problem() -> str:
    if importlib.util.find_spec("torchvision") is None:
        return "it is not installed"
    try:
        import pulid.torchvision_guard  # noqa: F401
    except (ImportError, OSError, RuntimeError) as exc:
        return str(exc).partition("\n")[0]
    return ""


def _torchvision_is_mended() -> bool:
    from pulid.torchvision_guard import is_mended

    return is_mended()
