"""From a new prompt and a known face to an encoded picture: what a request takes, without HTTP.

Each run has a prompt of its own, so that no text is answered from memory; the photo is the same, so that the
identity is. Stages by the clock: text, denoise, decode (with the way to the host), encode. Rows in turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

from bench.cases import Case
from bench.device import wait_for
from bench.measure import Setup, Tell, percentile
from bench.rows import Row, turns
from pulid.engine import GenerationRequest
from server.jobs.files import OutputOptions, encode_images

STAGES = ("text", "denoise", "decode", "encode")


def measure_whole(case: Case, setup: Setup, tell: Tell) -> dict[str, Any]:
    rows = setup.taken(case)
    request = setup.request(case)
    for name, row in rows.items():
        tell(f"first picture of {name}")
        stages_of(row, replace(request, prompt=f"{request.prompt}, {name}"), setup)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    order = list(turns(list(rows), case.repeats))
    for number, name in enumerate(order):
        asked = replace(request, prompt=f"{request.prompt}, {number}")
        times[name].append(stages_of(rows[name], asked, setup))
        tell(f"picture {number + 1} of {len(order)}, {name}: {sum(times[name][-1].values()):.3f} s")
    return {"order": order, "rows": {name: figures(runs) for name, runs in times.items()}}


def stages_of(row: Row, request: GenerationRequest, setup: Setup) -> dict[str, float]:
    """Seconds of each stage."""
    marks: list[float] = []

    def mark() -> None:
        wait_for(setup.device)
        marks.append(time.perf_counter())

    mark()
    loop = row.loop(request)
    mark()
    packed = loop(mark)
    images = row.pictures(packed, request)
    mark()
    encode_images(images, OutputOptions())
    mark()
    spans = (after - before for before, after in itertools.pairwise(marks))
    return dict(zip(STAGES, spans, strict=True))


def figures(runs: list[dict[str, float]]) -> dict[str, Any]:
    whole = [sum(run.values()) for run in runs]
    outside = [sum(run.values()) - run["denoise"] for run in runs]
    return {
        "p50_s": round(statistics.median(whole), 5),
        "p95_s": round(percentile(whole, 95), 5),
        "times_s": [round(seconds, 5) for seconds in whole],
        "outside_denoise_p50_ms": round(1000 * statistics.median(outside), 3),
        "stages_p50_ms": {
            stage: round(1000 * statistics.median(run[stage] for run in runs), 3) for stage in STAGES
        },
    }
