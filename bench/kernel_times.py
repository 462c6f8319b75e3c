"""Where the time of one loop goes, by kernel: matrix products, attention, and everything else.

Kernels are sorted by their names, which are the libraries' own. So is the attention backend found that
really ran, whatever torch was asked for. Knows no model.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.rows import Loop

TOP = 12
# The first that matches counts; attention kernels of CUTLASS would pass for matrix products.
BACKENDS = {
    "cudnn": r"cudnn.*(sdpa|flash|attention|fprop)|fort_native_sdpa",
    "flash": r"flash_fwd|flash_attention|flash_attn",
    "efficient": r"fmha_cutlass|efficient_attention|mem_eff",
}
GROUPS = {
    "attention": "|".join(BACKENDS.values()) + "|sdpa|fmha|attention",
    "gemm": r"gemm|nvjet|cublas|cutlass|xmma|wgmma|splitk|gemv|triton_tem|::(mm|addmm|bmm|baddbmm)$",
    "copy": r"^memcpy|^memset|copy|catarray|::(cat|_to_copy|contiguous)$",
}
REST = "elementwise"  # norms, gates, activations, rotary turns, softmax: whatever moves numbers once


def group_of(kernel: str) -> str:
    return next((group for group, names in GROUPS.items() if re.search(names, kernel.lower())), REST)


def backend_of(kernels: dict[str, float]) -> str:
    """Of scaled dot-product attention; "math" where no kernel of its own ran."""
    times: dict[str, float] = {}
    for kernel, time in kernels.items():
        for backend, names in BACKENDS.items():
            if re.search(names, kernel.lower()):
                times[backend] = times.get(backend, 0.0) + time
                break
    return max(times, key=lambda backend: times[backend]) if times else "math"


def profiled(loop: Loop, device: torch.device) -> dict[str, Any]:
    """Of one whole loop, decoding not included."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    profiler = profile(activities=activities)

    def stop() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        profiler.stop()

    profiler.start()
    loop(stop)
    return breakdown(kernels_of(profiler, device))


def kernels_of(profiler: profile, device: torch.device) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls by kernel; on the CPU by operator."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    found = {}
    for event in profiler.key_averages():
        if event.device_type != kind or getattr(event, "is_user_annotation", False):
            continue
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if spent > 0:
            found[event.key] = (spent / 1000, event.count)
    return found


def breakdown(kernels: dict[str, tuple[float, int]]) -> dict[str, Any]:
    total = sum(time for time, _ in kernels.values())
    groups = dict.fromkeys((*GROUPS, REST), 0.0)
    for kernel, (time, _) in kernels.items():
        groups[group_of(kernel)] += time
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "kernel_ms": round(total, 3),
        "launches": sum(count for _, count in kernels.values()),
        "share_percent": {group: round(100 * time / total, 2) for group, time in groups.items()},
        "attention_backend": backend_of({kernel: time for kernel, (time, _) in kernels.items()}),
        "top": [
            {"kernel": kernel[:120], "ms": round(time, 3), "calls": count, "group": group_of(kernel)}
            for kernel, (time, count) in top
        ],
    }
