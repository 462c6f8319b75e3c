"""Libraries that are installed and do not go together: two of onnxruntime, torchvision with another torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from pulid.errors import SetupError
from pulid.profiles import SpeedProfile
from server import engines
from server.checks.finding import Finding, fault, ok, warning

if TYPE_CHECKING:
    from pulid.probe import LibraryFacts

_CPU = "CPUExecutionProvider"


def libraries(profile: SpeedProfile) -> Iterator[Finding]:
    """Loads them, which takes seconds."""
    yield (both := check_onnx_packages())
    try:
        facts = engines.library_facts()
    except SetupError as exc:
        yield fault("libraries", str(exc))
        return
    if both.state == "ok":
        yield check_onnx_providers(facts)
    yield check_torchvision(profile, facts)


def check_onnx_packages() -> Finding:
    """Both packages own the folder `onnxruntime`: what was installed last half overwrites the other."""
    there = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(there) == 2:
        return fault(
            "onnx",
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other. Run: pip uninstall "
            "-y onnxruntime onnxruntime-gpu && pip install -c configs/constraints.txt onnxruntime",
        )
    if not there:
        return fault(
            "onnx", "onnxruntime is not installed: pip install -c configs/constraints.txt onnxruntime"
        )
    return ok("onnx", f"{there[0]} {metadata.version(there[0])}.")


def _is_installed(package: str) -> bool:
    return any(True for _ in metadata.distributions(name=package))


def check_onnx_providers(facts: LibraryFacts) -> Finding:
    if _CPU not in facts.onnx_providers:
        known = ", ".join(facts.onnx_providers) or "none"
        return fault("faces", f"onnxruntime has no {_CPU}, only: {known}. Install onnxruntime again.")
    return ok("faces", "Faces are read on the CPU, on purpose: one takes little there.")


def check_torchvision(profile: SpeedProfile, facts: LibraryFacts) -> Finding:
    if facts.torchvision:
        return fault(
            "torchvision",
            f"torchvision does not load beside this torch: {facts.torchvision}. With it fail diffusers, "
            "transformers and facexlib. Install both of one release: "
            "pip install --force-reinstall -c configs/constraints.txt torch torchvision",
        )
    if not facts.torchvision_is_mended:
        return ok("torchvision", "It loads beside this torch.")
    if profile.device == "cpu":
        return ok("torchvision", "Built for another torch; its two operators that count are replaced.")
    return warning(
        "torchvision",
        "It is built for another torch, and its operators are replaced by slower ones on the CPU. Install "
        "both of one release: pip install --force-reinstall -c configs/constraints.txt torch torchvision",
    )
