"""What the server adds to a picture: one v1 call after the other, with an engine that answers at once.

    python bench/overhead.py --requests 400

A real server process and a real worker process (tests/staged_server.py), keep-alive, a portrait as
a data URI, 256x256, WebP. In the time are HTTP, JSON, the queue, both SQLite commits, every fsync and
the way to the worker and back; the first commit is made while the worker decodes the photo. What
decoding the photo and encoding the picture take is taken off: the first as the worker itself reports
it for these very calls, on average; the second measured with the server's own function, with the
pauses that a worker has between two pictures. Two yardsticks say how fast the machine was meanwhile:
one fsync, and one hand-over from an event loop to a thread and back, of which a call has about a
dozen. Prints a table, then one JSON line, and writes that to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from instant_engine import SIDE, the_picture  # noqa: E402
from live_server import PHOTOS, ServerProcess, live_server  # noqa: E402
from server.jobs.files import OutputOptions, encode_images  # noqa: E402

TARGET_MS = 8.0  # at p50, without decoding and encoding
PAUSE_S = 0.01  # about the time between two pictures
PHOTO = (PHOTOS / "ardern.jpg").read_bytes()
PACKAGES = ("fastapi", "starlette", "uvicorn", "h11", "pydantic", "pillow")


def request_body(seed: int) -> bytes:
    photo = base64.b64encode(PHOTO).decode()
    return json.dumps(
        {
            "main_face_image": f"data:image/jpeg;base64,{photo}",
            "prompt": "portrait",
            "width": SIDE,
            "height": SIDE,
            "num_steps": 1,
            "seed": seed,
        }
    ).encode()


def time_calls(url: str, count: int) -> list[float]:
    """Milliseconds of each of `count` calls, one after the other on one connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    headers = {"content-type": "application/json"}
    times = []
    for seed in range(count):
        body = request_body(seed)
        started = time.perf_counter()
        connection.request("POST", "/v1/flux-pulid", body, headers)
        response = connection.getresponse()
        response.read()
        times.append(1000 * (time.perf_counter() - started))
        assert response.status == 200, response.status
    connection.close()
    return times


def time_work(work: Callable[[], object], count: int = 100, pause_s: float = 0.0) -> float:
    """Milliseconds of the median call."""
    times = []
    for _ in range(count):
        time.sleep(pause_s)
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def time_fsync(folder: Path) -> float:
    """Milliseconds to write 4 kB to a file of its own for good; a call does several of these."""
    file = folder / "fsync"

    def write() -> None:
        with file.open("wb") as opened:
            opened.write(b"x" * 4096)
            opened.flush()
            os.fsync(opened.fileno())

    return time_work(write)


def time_hand_over() -> float:
    """Milliseconds from an event loop to an idle thread and back."""

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        times = []
        with ThreadPoolExecutor(1) as thread:
            for _ in range(500):
                started = time.perf_counter()
                await loop.run_in_executor(thread, int)
                times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    return asyncio.run(measure())


def quantiles(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {name: round(cuts[number - 1], 2) for name, number in (("p50", 50), ("p95", 95), ("p99", 99))}


def stage_seconds(server: ServerProcess, stage: str) -> tuple[float, float]:
    """What the server has counted of a stage: seconds, and how often."""
    text = server.client.get("/metrics").raise_for_status().text
    lines = re.findall(rf'^flux_pulid_stage_seconds_(sum|count){{stage="{stage}"}} (\S+)$', text, re.M)
    told = {kind: float(value) for kind, value in lines}
    return told["sum"], told["count"]


def measure(folder: Path, requests: int, warm_up: int) -> dict[str, dict[str, float] | float]:
    with live_server(folder / "data", instant=True) as server:
        time_calls(server.url, warm_up)
        before = stage_seconds(server, "decode_photo")
        times = time_calls(server.url, requests)
        after = stage_seconds(server, "decode_photo")
    decode = 1000 * (after[0] - before[0]) / (after[1] - before[1])
    result = the_picture()
    encode = time_work(lambda: encode_images(result.images, OutputOptions()), pause_s=PAUSE_S)
    return {
        "call": quantiles(times),
        "decode_photo": round(decode, 2),
        "encode": round(encode, 2),
        "overhead": quantiles([call - decode - encode for call in times]),
        "fsync": round(time_fsync(folder), 2),
        "hand_over": round(time_hand_over(), 3),
    }


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": len(git("status", "--porcelain").splitlines()),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
    }


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def cpu_model() -> str:
    """As Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def print_table(ms: dict[str, Any]) -> None:
    print(f"{'ms':<34}{'p50':>8}{'p95':>8}{'p99':>8}")
    for name, label in (("call", "call, seen by the client"), ("overhead", "without decoding and encoding")):
        print(f"{label:<34}" + "".join(f"{ms[name][q]:>8.2f}" for q in ("p50", "p95", "p99")))
    for name, label in (("decode_photo", "decoding the photo"), ("encode", "encoding the picture")):
        print(f"{label:<34}{ms[name]:>8.2f}")
    print(f"{'one fsync of 4 kB':<34}{ms['fsync']:>8.2f}")
    print(f"{'one hand-over to a thread':<34}{ms['hand_over']:>8.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--warm-up", type=int, default=40)
    parser.add_argument(
        "--folder", type=Path, help="where the server keeps its data; default: a temporary one"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        ms = measure(Path(folder), chosen.requests, chosen.warm_up)
    print_table(ms)
    now = datetime.now(UTC)
    line = {
        "bench": "overhead",
        "date": now.isoformat(timespec="seconds"),
        "profile": "instant",
        "requests": chosen.requests,
        "target_ms": TARGET_MS,
        "ms": ms,
        **facts(),
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / f"overhead-{now:%Y-%m-%d}.json").write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))
    return 0 if ms["overhead"]["p50"] < TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
