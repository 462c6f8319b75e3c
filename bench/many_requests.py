"""Many small requests of many sizes through one engine: does anything still compile, does memory grow?

First every size is met, for as many steps as an engine needs to do all that it does for a new size.
Afterwards no graph may be made, no request of a size may be much slower than the others of that size, and the
device's memory may not grow. One row after the other: they share no state.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from bench.cases import REQUEST_SIZES, WARM_UP_STEPS, Case
from bench.measure import Setup, Tell
from bench.random_model import random_request
from bench.rows import Ours, graphs_counted
from pulid.engine import GenerationRequest

MIB = 2**20
TOLD_EVERY = 100  # requests


def measure_requests(case: Case, setup: Setup, tell: Tell) -> dict[str, Any]:
    rows = {name: row for name, row in setup.taken(case).items() if isinstance(row, Ours)}
    return {
        "sizes": [f"{width}x{height}" for width, height in REQUEST_SIZES],
        "rows": {name: one_row(row, case, setup, tell) for name, row in rows.items()},
    }


def one_row(row: Ours, case: Case, setup: Setup, tell: Tell) -> dict[str, Any]:
    for width, height in REQUEST_SIZES:
        for num_steps in WARM_UP_STEPS:
            painted(row, random_request(setup.scale, width, height, num_steps=num_steps))
    times: defaultdict[tuple[int, int, int], list[float]] = defaultdict(list)
    memory = held(setup.device)
    most = memory
    with graphs_counted() as graphs:
        for number, request in enumerate(requests_of(case, setup), 1):
            seconds = painted(row, request)
            times[request.width, request.height, request.num_steps].append(seconds)
            most = max(most, held(setup.device))
            if number % TOLD_EVERY == 0:
                tell(f"request {number} of {case.repeats}, {row.name}")
        compiled = graphs()
    slowest = max(max(of_one) / statistics.median(of_one) for of_one in times.values())
    return {
        "requests": case.repeats,
        "graphs": compiled,
        "memory_growth_mib": round((held(setup.device) - memory) / MIB, 2),
        "most_memory_growth_mib": round((most - memory) / MIB, 2),
        "slowest_over_median": round(slowest, 3),
        "p50_s": round(statistics.median(x for of_one in times.values() for x in of_one), 5),
    }


def requests_of(case: Case, setup: Setup) -> Iterator[GenerationRequest]:
    """Sizes in turn, 1 to 4 steps."""
    for number in range(case.repeats):
        width, height = REQUEST_SIZES[number % len(REQUEST_SIZES)]
        steps = 1 + number // len(REQUEST_SIZES) % 4
        yield random_request(setup.scale, width, height, num_steps=steps, seed=number)


def painted(row: Ours, request: GenerationRequest) -> float:
    """Seconds from the request to its pictures."""
    started = time.perf_counter()
    packed = row.loop(request)(lambda: None)
    row.pictures(packed, request)
    return time.perf_counter() - started


def held(device: torch.device) -> int:
    """Bytes that the process holds on the device, used or not."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
