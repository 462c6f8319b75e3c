"""How throughput grows with the workers of one server, when the devices themselves cost no processor.

    python bench/workers.py                           any machine, no GPU, about half a minute

The job service with its database and files, and real worker processes in which a scripted engine
(tests/fakes.py) sleeps through its steps, as a GPU's worker does: so neither cores nor cards limit, and what
is seen is what lies between two jobs of a device. A queue that is never empty, for 1, 2 and 4 workers; the
time runs from the first submit to the last end, with the start of every first job and the writing of every
last picture in it. Target: each worker adds at least 0.95 of what one does alone; the script ends with 1 when
that is missed. Prints a table, then one JSON line, and writes that to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench.overhead import facts  # noqa: E402
from bench.record import RESULTS  # noqa: E402
from jobs.serving import PHOTO, PICTURE, serving, until  # noqa: E402
from server.jobs.job import JobState  # noqa: E402
from server.logs import configure_logs  # noqa: E402

WORKERS = (1, 2, 4)
TARGET = 0.95  # of one worker's throughput, for each


async def per_second(folder: Path, workers: int, *, jobs_each: int, steps: int, step_s: float) -> float:
    """Jobs a second of so many workers, after each of them has painted once."""
    devices = tuple(f"device {number}" for number in range(workers))
    limits: dict[str, Any] = {"max_queued": 10_000, "log_level": "warning"}
    async with serving(folder, photo=PHOTO, picture=PICTURE, devices=devices, **limits) as here:
        await until(lambda: all(here.service.workers.values()))
        await asyncio.gather(*[here.run("warm-up") for _ in devices])
        prompt = f"slow {step_s} s per step"
        started = time.perf_counter()
        ids = [await here.submit(prompt, num_steps=steps) for _ in range(workers * jobs_each)]
        records = [await here.service.wait(job_id) for job_id in ids]
        seconds = time.perf_counter() - started
    assert all(record.state is JobState.COMPLETED and record.tries == 1 for record in records)
    return len(ids) / seconds


def measured(jobs_each: int, steps: int, step_s: float) -> dict[int, float]:
    """Workers -> jobs a second."""
    told = {}
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            work = per_second(Path(folder), workers, jobs_each=jobs_each, steps=steps, step_s=step_s)
            told[workers] = asyncio.run(work)
    return told


def shares(told: Mapping[int, float]) -> dict[int, float]:
    """Workers -> what each of them does, of what one does alone."""
    return {workers: rate / (workers * told[1]) for workers, rate in told.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="of each worker")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.1, help="seconds that a step sleeps")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()

    told = measured(chosen.jobs, chosen.steps, chosen.step_s)
    each = shares(told)
    print("\n| workers | jobs a second | each, of one alone | of what sleeping alone would allow |")
    print("|---|---|---|---|")
    for workers, rate in told.items():
        ideal = workers / (chosen.steps * chosen.step_s)
        print(f"| {workers} | {rate:.2f} | {each[workers]:.3f} | {rate / ideal:.3f} |")
    now = datetime.now(UTC)
    line = {
        "bench": "workers",
        "date": now.isoformat(timespec="seconds"),
        "jobs_each": chosen.jobs,
        "steps": chosen.steps,
        "step_s": chosen.step_s,
        "jobs_per_s": {str(workers): round(rate, 3) for workers, rate in told.items()},
        "each_of_one_alone": {str(workers): round(share, 3) for workers, share in each.items()},
        **facts(),
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / f"workers-{now:%Y-%m-%d}.json").write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))
    return 0 if min(each.values()) >= TARGET else 1


if __name__ == "__main__":
    configure_logs(level="warning", form=None)
    sys.exit(main())
