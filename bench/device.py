"""What a device is, what it can do at best, and what it did meanwhile. Only reads: no setting is changed.

Clocks, power and temperature come from nvidia-smi, the matrix rate from a product of random numbers in the
same process. On the CPU the same questions have fewer answers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

PACKAGES = ("torch", "triton", "diffusers", "transformers", "nvidia-cudnn-cu13", "numpy")
ABOUT = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem")
MEANWHILE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
SAMPLE_S = 2.0
MATMUL_SIDE = {"cuda": 8192, "cpu": 512}
MATMUL_REPEATS = 10
MATMULS_A_REPEAT = 10  # else the way to the device and back would count, and the peak look lower


def check_device(name: str, scale: str) -> torch.device:
    """Ends the script where it cannot run, and says what can be done."""
    check = "For a check of the script: --device cpu --scale tiny."
    if name.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"There is no CUDA device. {check}")
    if name == "cpu" and scale == "full":
        sys.exit(f"The full size is for a GPU: on a CPU it takes hours and 100 GB of memory. {check}")
    return torch.device(name)


def wait_for(device: torch.device) -> None:
    """Until all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def facts(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {
        "device": str(device),
        "python": platform.python_version(),
        "versions": versions(),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        found |= {
            "card": torch.cuda.get_device_name(device),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": asked_of_nvidia_smi(ABOUT),
        }
    return found


def short_name(device: torch.device) -> str:
    """For file names: h200, rtx-4090, cpu."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device).lower().replace("nvidia", "").replace("geforce", "")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def asked_of_nvidia_smi(fields: tuple[str, ...]) -> dict[str, str]:
    """Of card 0; empty where there is no such program or no card."""
    try:
        line = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, line.split(", "), strict=True))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product of random numbers; the median of several."""
    side = MATMUL_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn((side, side), generator=generator, device=device, dtype=torch.float32).to(dtype)
        for _ in range(2)
    )
    out = torch.empty_like(a)
    for _ in range(3):
        torch.mm(a, b, out=out)

    def several() -> None:
        for _ in range(MATMULS_A_REPEAT):
            torch.mm(a, b, out=out)

    times = [seconds_of(several, device) for _ in range(MATMUL_REPEATS)]
    return MATMULS_A_REPEAT * 2 * side**3 / statistics.median(times) / 1e12


def memory_watched(device: torch.device) -> Callable[[], float | None]:
    """Gives a function that tells the most GiB that tensors held since, beyond those of now."""
    if device.type != "cuda":
        return lambda: None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return lambda: (torch.cuda.max_memory_allocated(device) - before) / 2**30


@contextlib.contextmanager
def clocks_watched(device: torch.device) -> Iterator[dict[str, Any]]:
    """Gives what is filled at the end: least, median and most of each reading."""
    told: dict[str, Any] = {}
    if device.type != "cuda":
        yield told
        return
    samples: list[dict[str, str]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            samples.append(asked_of_nvidia_smi(MEANWHILE))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        done.set()
        thread.join()
        told |= summary_of(samples)


def summary_of(samples: list[dict[str, str]]) -> dict[str, Any]:
    told: dict[str, Any] = {"samples": len(samples)}
    for field in MEANWHILE:
        values = [float(sample[field]) for sample in samples if is_number(sample.get(field, ""))]
        if values:
            told[field] = [min(values), statistics.median(values), max(values)]
    return told


def is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None
