"""How much so many GPUs paint, how long callers wait, what a picture costs, and what breaks first.

    python bench/capacity.py                      any machine, no GPU, about two minutes

On paper: a picture's time on a GPU is not measured but computed, from the work of a step (bench/flops.py) and
rates that others have published for an H200. What is real: the queue (bench/simulator.py drives the server's
own scheduler and dispatcher), and three figures that are measured here on this machine: commits of the
database, one after the other as the server makes them; the hand-out of a job among so many devices; and, from
the newest result of bench/overhead.py, the way of a call through the front end. Prints the tables of
docs/scaling.md, then one JSON line, and writes that to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.flops import forward  # noqa: E402
from bench.overhead import facts, time_fsync  # noqa: E402
from bench.record import RESULTS  # noqa: E402
from bench.simulator import OUTPUT, REQUEST, Arrival, Kind, Outcome, one_line, poisson, simulate  # noqa: E402
from server.jobs.dispatcher import Dispatcher  # noqa: E402
from server.jobs.job import JobFile, JobRecord, JobState  # noqa: E402
from server.jobs.live import LiveJob  # noqa: E402
from server.jobs.scheduler import Scheduler  # noqa: E402
from server.jobs.store import SqliteJobStore  # noqa: E402

SIZES = ((512, 512), (896, 1152), (1024, 1024), (1536, 1536))
DEFAULT = (896, 1152)
STEPS, TEXT_TOKENS = 20, 128

# FLUX.1-dev at 1024x1024 on one H200: seconds for 28 steps with 512 text tokens and no identity, as SGLang's
# PR #19673 (2026-03) tells them.
PUBLISHED_S = {
    "diffusers, eager": 5.58,
    "diffusers, compiled": 4.32,
    "SGLang, compiled, FA3": 3.50,
}
PUBLISHED_STEPS, PUBLISHED_TOKENS, PUBLISHED_TEXT = 28, 4096, 512
BASIS = "diffusers, compiled"  # of the tables that need one
# Text encoders and decoder on the same card (SGLang PR #22365; which GPU is not told there).
AROUND_S = 0.0305 + 0.0276

HOSTED_USD = 0.036  # a picture on the hosted service
USD_PER_GPU_HOUR = (2.0, 3.0, 4.0, 6.0)  # examples, nobody's offer
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)
DEVICES = (1, 2, 4, 8)
FLEETS = (10, 100, 1000)
HAND_OUTS = (8, 100, 1000)  # devices
PREPARE = 0.1  # of a picture's time, assumed: a new photo and a new prompt

COMMITS_PER_JOB = 3  # of v2: accepted, begun, ended; v1 has two
CALLS_PER_JOB = 5  # of v2: submit, three questions after its state, the picture
PHOTO_BYTES, PICTURE_BYTES = 2_000_000, 300_000  # assumed: a photo from a phone, and a WebP of 896x1152
BASE64 = 4 / 3
WEIGHT_BYTES = 36.3e9
WEEK_S = 604_800  # media_ttl_s as it is by default


def rate_of(system: str) -> float:
    """Operations a second in the steps that a published time means."""
    work = PUBLISHED_STEPS * forward(PUBLISHED_TOKENS, PUBLISHED_TEXT).plain
    return work / (PUBLISHED_S[system] - AROUND_S)


def seconds_of(width: int, height: int, rate: float, steps: int = STEPS) -> float:
    """Of one picture, on a GPU that is not idle between two: its steps, and what lies around them."""
    tokens = (width // 16) * (height // 16)
    return steps * forward(tokens, TEXT_TOKENS).with_identity / rate + AROUND_S


def per_hour(seconds: float) -> float:
    return 3600 / seconds


# waiting


def waits_in_service_times(jobs: int, seed: int) -> dict[str, dict[str, float]]:
    """Devices -> load -> p95 of the wait, in times that one picture takes. All pictures of one size.

    The last rows have the most devices: with one line that no job leaves before a device is free, as nothing
    could do better; and with jobs that have to be prepared, beside others where there are any.
    """

    def row(queue: Callable[[Iterable[Arrival], int], Outcome], devices: int) -> dict[str, float]:
        alike = [Kind(1.0, *DEFAULT, 1.0)]
        arrivals = {load: poisson(load * devices, alike, jobs, seed) for load in LOADS}
        return {str(load): round(queue(each, devices).quantile(0.95), 2) for load, each in arrivals.items()}

    told = {str(devices): row(simulate, devices) for devices in DEVICES}
    told[f"{DEVICES[-1]}, one line"] = row(one_line, DEVICES[-1])
    prepared = row(partial(simulate, prepare_s=PREPARE), DEVICES[-1])
    return told | {f"{DEVICES[-1]}, {PREPARE:g} to prepare": prepared}


def mixture(rate: float) -> list[Kind]:
    """Made up: most callers keep the default size."""
    shares = {DEFAULT: 0.7, (1024, 1024): 0.2, (512, 512): 0.07, (1536, 1536): 0.03}
    return [Kind(share, *size, seconds_of(*size, rate)) for size, share in shares.items()]


def waits_of_arrivals(rate: float, jobs: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Devices -> load -> arrivals an hour, and seconds of waiting, for a mixture of sizes from four keys."""
    kinds = mixture(rate)
    mean_s = sum(kind.share * kind.seconds for kind in kinds)
    told: dict[str, dict[str, dict[str, float]]] = {}
    for devices in (1, 8):
        for load in LOADS:
            per_second = load * devices / mean_s
            outcome = simulate(
                poisson(per_second, kinds, jobs, seed, keys=4), devices, max_queued=64 * devices
            )
            told.setdefault(str(devices), {})[str(load)] = {
                "per_hour": round(3600 * per_second),
                "mean_s": round(outcome.mean, 1),
                "p95_s": round(outcome.quantile(0.95), 1),
                "refused": round(outcome.refused / outcome.offered, 4),
            }
    return told


# money


def usd_per_thousand(usd_per_hour: float, seconds: float, busy: float = 1.0) -> float:
    """A thousand pictures on a GPU that is paid by the hour and paints in that share of it."""
    return 1000 * usd_per_hour / (busy * per_hour(seconds))


def break_even_per_hour(usd_per_hour: float) -> float:
    """Pictures an hour from which a GPU costs less than the hosted service."""
    return usd_per_hour / HOSTED_USD


# what is measured here


def record_of(number: int) -> JobRecord:
    return JobRecord(
        id=f"{number:032x}",
        key="bench",
        api="v2",
        submitted_at=float(number),
        deadline_at=1e12,
        width=DEFAULT[0],
        height=DEFAULT[1],
        max_sequence_length=TEXT_TOKENS,
        num_steps=STEPS,
        num_outputs=1,
        media_id=f"{number:032x}",
    )


def measured_commits(folder: Path, jobs: int) -> float:
    """Commits a second of the server's own store, as its one thread makes them."""
    store = SqliteJobStore.open(folder / "jobs.sqlite3")
    file = JobFile(
        name="0.webp", content_type="image/webp", width=DEFAULT[0], height=DEFAULT[1], size=PICTURE_BYTES
    )
    started = time.perf_counter()
    for number in range(jobs):
        record = record_of(number)
        store.insert(record)
        begun = replace(record, state=JobState.PROCESSING, started_at=1.0, tries=1)
        store.save(begun)
        ended = replace(begun, state=JobState.COMPLETED, finished_at=2.0, files=(file,))
        store.save(ended, media_expires_at=1e12)
    seconds = time.perf_counter() - started
    store.close()
    return COMMITS_PER_JOB * jobs / seconds


def measured_hand_out(devices: int, jobs: int) -> float:
    """Milliseconds of the event loop for one job among busy devices: it arrives, another ends, one starts."""
    live: dict[str, LiveJob] = {}
    numbers = count()
    dispatcher = Dispatcher(
        devices=tuple(f"cuda:{number}" for number in range(devices)),
        scheduler=Scheduler(10_000),
        live=live,
        send=lambda device, message: None,
        photo_paths=lambda job_id, photos: (),
        now=lambda: 0.0,
    )
    for number in range(devices):
        dispatcher.device_ready(f"cuda:{number}")

    def arrive() -> None:
        job = LiveJob(record_of(next(numbers)), REQUEST, OUTPUT)
        live[job.id] = job
        dispatcher.enqueue(job)
        dispatcher.make_ready(job)

    for _ in range(3 * devices):
        arrive()
    done, seconds = 0, 0.0
    while done < jobs:
        painting = dispatcher.painting[: jobs - done]
        started = time.perf_counter()
        for job in painting:
            arrive()
            dispatcher.denoised(job)
            dispatcher.forget(job, is_painted=True)
        seconds += time.perf_counter() - started
        done += len(painting)
    return 1000 * seconds / done


def newest_overhead() -> tuple[str, float]:
    """File and milliseconds at p50 of the last run of bench/overhead.py that was kept."""
    path = max(RESULTS.glob("overhead-*.json"))
    return path.name, json.loads(path.read_text())["ms"]["overhead"]["p50"]


@dataclass(frozen=True)
class Limits:
    """What one of each can do, a second."""

    commits: float
    calls: float


def demands(gpus: int, seconds: float, limits: Limits) -> dict[str, float]:
    """What so many busy GPUs ask of everything around them."""
    jobs = gpus / seconds
    return {
        "jobs_per_s": round(jobs, 1),
        "commits_per_s": round(COMMITS_PER_JOB * jobs, 1),
        "of_one_database": round(COMMITS_PER_JOB * jobs / limits.commits, 3),
        "calls_per_s": round(CALLS_PER_JOB * jobs, 1),
        "of_one_front_end": round(CALLS_PER_JOB * jobs / limits.calls, 3),
        "photos_in_gbit_s": round(8e-9 * BASE64 * PHOTO_BYTES * jobs, 2),
        "pictures_out_gbit_s": round(8e-9 * PICTURE_BYTES * jobs, 2),
        "pictures_a_week_tb": round(1e-12 * PICTURE_BYTES * jobs * WEEK_S, 1),
        "weights_to_load_tb": round(1e-12 * WEIGHT_BYTES * gpus, 2),
    }


# tables


def table(head: Sequence[object], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(map(str, head)) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def print_throughput() -> None:
    print(f"\nPictures of one GPU an hour, {STEPS} steps\n")
    rates = {system: rate_of(system) for system in PUBLISHED_S}
    head = ["size", *(f"{system} ({rate / 1e12:.0f} TFLOP/s)" for system, rate in rates.items())]
    table(
        head,
        [
            [
                f"{w}x{h}",
                *(f"{per_hour(s):.0f} ({s:.2f} s)" for s in (seconds_of(w, h, r) for r in rates.values())),
            ]
            for w, h in SIZES
        ],
    )


def print_costs() -> None:
    print(f"\nUSD for a thousand pictures of 896x1152; hosted: {1000 * HOSTED_USD:.0f}\n")
    seconds = {system: seconds_of(*DEFAULT, rate_of(system)) for system in PUBLISHED_S}
    head = [
        "USD a GPU-hour",
        *(f"{s}, always busy" for s in seconds),
        f"{BASIS}, busy 20 %",
        "break-even, an hour",
    ]
    table(
        head,
        [
            [
                f"{usd:.2f}",
                *(f"{usd_per_thousand(usd, s):.2f}" for s in seconds.values()),
                f"{usd_per_thousand(usd, seconds[BASIS], 0.2):.2f}",
                f"{break_even_per_hour(usd):.0f}",
            ]
            for usd in USD_PER_GPU_HOUR
        ],
    )


def print_waits(alike: Mapping[str, Mapping[str, float]], mixed: Mapping[str, Mapping[str, Any]]) -> None:
    print("\np95 of the wait, in times of one picture; all of one size\n")
    table(
        ["GPUs of the server", *(f"load {load}" for load in LOADS)],
        [[d, *row.values()] for d, row in alike.items()],
    )
    print(f"\nA mixture of sizes, four keys, {BASIS}\n")
    table(
        ["GPUs", "load", "arrivals an hour", "mean wait, s", "p95, s", "refused"],
        [[d, load, *row.values()] for d, rows in mixed.items() for load, row in rows.items()],
    )


def print_fleets(fleets: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\nWhat busy GPUs ask for, {BASIS}, 896x1152\n")
    names = next(iter(fleets.values()))
    table(["GPUs", *fleets], [[name, *(fleet[name] for fleet in fleets.values())] for name in names])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30_000, help="of each simulation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commits", type=int, default=1000, help="jobs that are written to measure commits")
    parser.add_argument("--folder", type=Path, help="whose disk the commits are measured on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        fsync_ms = time_fsync(Path(folder))
        commits = measured_commits(Path(folder), chosen.commits)
    hand_out = {str(gpus): round(measured_hand_out(gpus, 200), 3) for gpus in HAND_OUTS}
    source, overhead_ms = newest_overhead()
    limits = Limits(commits=commits, calls=1000 / overhead_ms)
    rate = rate_of(BASIS)
    alike = waits_in_service_times(chosen.jobs, chosen.seed)
    mixed = waits_of_arrivals(rate, chosen.jobs, chosen.seed)
    fleets = {str(gpus): demands(gpus, seconds_of(*DEFAULT, rate), limits) for gpus in FLEETS}

    print_throughput()
    print_costs()
    print_waits(alike, mixed)
    print_fleets(fleets)
    print(f"commits a second: {commits:.0f}; an fsync: {fsync_ms:.2f} ms")
    print(f"ms to hand out a job, by devices: {hand_out}")
    print(f"calls a second, one after the other: {limits.calls:.0f} ({source})")
    now = datetime.now(UTC)
    line = {
        "bench": "capacity",
        "date": now.isoformat(timespec="seconds"),
        "jobs": chosen.jobs,
        "seed": chosen.seed,
        "computed_tflops": {system: round(rate_of(system) / 1e12) for system in PUBLISHED_S},
        "measured": {
            "commits_per_s": round(commits),
            "fsync_ms": round(fsync_ms, 2),
            "front_end_calls_per_s": round(limits.calls),
            "front_end_from": source,
            "hand_out_ms_by_devices": hand_out,
        },
        "p95_wait_in_service_times": alike,
        "mixture": mixed,
        "fleets": fleets,
        **facts(),
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / f"capacity-{now:%Y-%m-%d}.json").write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
