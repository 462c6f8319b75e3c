"""One case, measured: every row warmed up, then in turns forth and back, then looked into.

The clock runs from the loop's start to the end of its last step on the device; a row is not charged for
what it decodes afterwards. Knows rows and cases; prints and writes nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.cases import PROFILED_STEPS, Case, tflop_of, warm_ups
from bench.device import clocks_watched, matmul_peak, memory_watched, wait_for
from bench.flops import FluxShape
from bench.kernel_times import profiled
from bench.random_model import Scale, random_request
from bench.rows import Loop, Ours, Row, graphs_counted, turns
from pulid.engine import GenerationRequest

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The model and its rows, on a device."""

    rows: Mapping[str, Row]
    scale: Scale
    shape: FluxShape
    device: torch.device
    dtype: torch.dtype

    def taken(self, case: Case) -> dict[str, Row]:
        return {name: row for name, row in self.rows.items() if case.takes(name)}

    def request(self, case: Case, **changes: Any) -> GenerationRequest:
        asked = {"num_steps": case.num_steps, **case.changes, **changes}
        return random_request(self.scale, case.width, case.height, **asked)


@dataclass
class Run:
    seconds: float
    working_gib: float | None  # at most, beyond what was there before: weights of all rows
    graphs: int  # compiled meanwhile
    packed: Tensor


@dataclass
class Measured:
    """What is known of one row in one case."""

    first: Run
    times: list[float] = field(default_factory=list)  # seconds
    working_gib: float | None = None
    graphs: int = 0  # compiled in the runs that count; 0 is right
    packed: Tensor | None = None


def timed(loop: Loop, device: torch.device) -> Run:
    ends: list[tuple[float, float | None]] = []

    def on_end() -> None:
        wait_for(device)
        ends.append((time.perf_counter(), used()))

    wait_for(device)
    used = memory_watched(device)
    with graphs_counted() as graphs:
        started = time.perf_counter()
        packed = loop(on_end)
        compiled = graphs()
    ended, working = ends[-1]
    return Run(ended - started, working, compiled, packed)


def measure(case: Case, setup: Setup, tell: Tell) -> dict[str, Any]:
    """Everything that is told of a case."""
    rows, device = setup.taken(case), setup.device
    loops = {name: row.loop(setup.request(case)) for name, row in rows.items()}
    measured = warmed_up(case, loops, device, tell)
    peak = matmul_peak(device, setup.dtype)
    order = list(turns(list(loops), case.repeats))
    with clocks_watched(device) as clocks:
        for number, name in enumerate(order, 1):
            count(measured[name], timed(loops[name], device))
            tell(f"run {number} of {len(order)}, {name}: {measured[name].times[-1]:.3f} s")
    peak_after = matmul_peak(device, setup.dtype)
    tell("looking into the kernels")
    told = {
        name: {
            **figures(one, work_of(case, setup, rows[name]), peak),
            **skipped(case, rows[name]),
            f"kernels_of_{PROFILED_STEPS}_steps": looked_into(case, setup, rows[name]),
        }
        for name, one in measured.items()
    }
    return {
        "matmul_peak_tflops": [round(peak, 3), round(peak_after, 3)],  # before and after the runs
        "order": order,
        "clocks": clocks,
        "rows": told,
        "ratios": ratios(told),
        "apart_from_reference": apart(measured, rows),
    }


def work_of(case: Case, setup: Setup, row: Row) -> float:
    return tflop_of(case, has_identity=row.has_identity, divisor=setup.scale.divisor, shape=setup.shape)


def skipped(case: Case, row: Row) -> dict[str, float]:
    """Of the steps of the last run, in per cent, where any were: its time is worth what this share is."""
    if not isinstance(row, Ours) or not row.skipped_steps:
        return {}
    return {"skipped_percent": round(100 * row.skipped_steps / case.forwards(), 1)}


def looked_into(case: Case, setup: Setup, row: Row) -> dict[str, Any]:
    """A short loop by kernel, and how much of its time (measured without the profiler) kernels ran."""
    loop = row.loop(setup.request(case, num_steps=PROFILED_STEPS))
    timed(loop, setup.device)
    wall_ms = 1000 * timed(loop, setup.device).seconds
    told = profiled(loop, setup.device)
    return {**told, "wall_ms": round(wall_ms, 3), "busy_percent": round(100 * told["kernel_ms"] / wall_ms, 1)}


def warmed_up(case: Case, loops: Mapping[str, Loop], device: torch.device, tell: Tell) -> dict[str, Measured]:
    measured = {}
    for name, loop in loops.items():
        tell(f"first run of {name}")
        measured[name] = Measured(timed(loop, device))
        for _ in range(warm_ups(case) - 1):
            timed(loop, device)
    return measured


def count(measured: Measured, run: Run) -> None:
    measured.times.append(run.seconds)
    measured.graphs += run.graphs
    measured.packed = run.packed
    if run.working_gib is not None:
        measured.working_gib = max(measured.working_gib or 0.0, run.working_gib)


def figures(measured: Measured, tflop: float, peak: float) -> dict[str, Any]:
    """`compile_s` is what the first run took longer than the median one."""
    p50 = statistics.median(measured.times)
    rate = tflop / p50
    return {
        "p50_s": round(p50, 5),
        "p95_s": round(percentile(measured.times, 95), 5),
        "times_s": [round(seconds, 5) for seconds in measured.times],
        "first_s": round(measured.first.seconds, 3),
        "compile_s": round(max(measured.first.seconds - p50, 0.0), 3),
        "graphs_at_first": measured.first.graphs,
        "graphs_after_warm_up": measured.graphs,
        "tflop": round(tflop, 6),
        "tflops": round(rate, 3),
        "share_of_matmul_peak_percent": round(100 * rate / peak, 2),
        "working_gib": None if measured.working_gib is None else round(measured.working_gib, 3),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: a value that was measured."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How much faster than the reference and the peer, and what an identity costs, by medians."""
    p50 = {name: row["p50_s"] for name, row in rows.items()}
    told: dict[str, Any] = {}
    for name in (name for name in p50 if name.startswith("ours")):
        for other in ("reference", "peer", "peer-fp8"):
            if other in p50:
                told[f"{other}/{name}"] = round(p50[other] / p50[name], 4)
        if "plain" in p50:
            told[f"identity_cost_percent_{name}"] = round(100 * (p50[name] / p50["plain"] - 1), 3)
    return told


def apart(measured: Mapping[str, Measured], rows: Mapping[str, Row]) -> dict[str, float]:
    """Relative distance of each row's latents from the reference's: the same function, other rounding."""
    if "reference" not in measured:
        return {}
    base = measured["reference"].packed
    return {
        name: relative(one.packed, base)
        for name, one in measured.items()
        if name != "reference" and rows[name].has_identity
    }


def relative(found: Tensor | None, base: Tensor | None) -> float:
    """Raises ValueError for what is no number."""
    assert found is not None
    assert base is not None
    error = float((found.double() - base.double()).norm() / base.double().norm())
    if not math.isfinite(error):
        raise ValueError("The latents of a row are not finite.")
    return error
