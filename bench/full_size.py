"""The whole model at full size: random weights made, loaded by the real server, pictures painted over HTTP.

    python bench/full_size.py --folder FOLDER                             on a GPU host, under 9 minutes
    python bench/full_size.py --folder FOLDER --device cpu --load-only    loading alone, anywhere

Makes the weights with `flux-pulid weights synthesize` (36 GB; what is there is kept), starts `flux-pulid
serve --profile exact` with them, waits for /ready, and asks for 896x1152 pictures of a real photo in 20
steps. Meanwhile it reads the memory of the server's processes from /proc and the card's from
nvidia-smi. With --load-only the loader runs in a process of its own, and nothing is painted; on the
CPU the weights stay mapped files. Prints a table, then one JSON line, and writes that to bench/results/.

The target: beside the largest tensor, no process that loads takes 4 GB of host memory of its own
(anonymous, shared or locked; file cache is not counted, since the system takes it back at need).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PHOTO = ROOT / "tests" / "photos" / "collins.jpg"
PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "onnxruntime")
WIDTH, HEIGHT, STEPS = 896, 1152, 20
TARGET_MB = 4000.0  # of host memory beside the largest tensor
READY_S, PICTURE_S, END_S = 300.0, 200.0, 60.0
SAMPLE_S, MAPS_SAMPLE_S, CARD_SAMPLE_S = 0.1, 1.0, 1.0
_MB = 1e6


# ---- memory, seen from outside ----


class HostMemory:
    """The largest memory of their own that a process and its descendants had, one by one and together."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._maps_read = 0.0
        self.peak_of_one: dict[str, float] = {}  # MB: of the process that had most, by kind
        self.peak_together = 0.0  # MB of all kinds, all processes at one time
        self.file_cache = 0.0  # MB of mapped files, for comparison

    def sample(self) -> None:
        processes = [memory for pid in family(self._root) if (memory := status_of(pid))]
        for memory in processes:
            for kind, size in memory.items():
                self.peak_of_one[kind] = max(self.peak_of_one.get(kind, 0.0), size)
        self.peak_together = max(self.peak_together, sum(memory["own"] for memory in processes))
        self.file_cache = max(self.file_cache, *(memory["mapped_files"] for memory in processes), 0.0)
        if time.monotonic() - self._maps_read > MAPS_SAMPLE_S:  # the kernel walks every page for this
            self._maps_read = time.monotonic()
            anonymous = max((anonymous_of(pid) for pid in family(self._root)), default=0.0)
            kept = self.peak_of_one.get("smaps_anonymous", 0.0)
            self.peak_of_one["smaps_anonymous"] = max(kept, anonymous)

    def facts(self) -> dict[str, Any]:
        own = max(self.peak_of_one.get("own", 0.0), self.peak_of_one.get("smaps_anonymous", 0.0))
        return {
            "peak_of_one_process_mb": round(own),
            "by_kind_mb": {kind: round(size) for kind, size in sorted(self.peak_of_one.items())},
            "peak_of_all_processes_mb": round(self.peak_together),
        }


def family(root: int) -> list[int]:
    """A process and its descendants."""
    found, new = [], [root]
    while new:
        found += new
        new = [child for pid in new for child in children_of(pid)]
    return found


def children_of(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return children


def status_of(pid: int) -> dict[str, float]:
    """MB by kind; empty when the process has ended. `own` is what the target is about."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    size = {name: 1024 * int(number) / _MB for name, number in kilobytes.items()}
    if "RssAnon" not in size:  # a zombie has no memory
        return {}
    shared, locked, pinned = size["RssShmem"], size["VmLck"], size["VmPin"]
    return {
        "anonymous": size["RssAnon"],
        "shared": shared,  # what CUDA allocates as pinned memory can be counted here
        "locked": locked,
        "pinned": pinned,
        "own": size["RssAnon"] + shared + locked + pinned,
        "mapped_files": size["RssFile"],
        "largest_resident": size["VmHWM"],
    }


def anonymous_of(pid: int) -> float:
    """MB, by the page tables themselves."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
        )
        return 1024 * int(found[1]) / _MB if found else 0.0
    return 0.0


class CardMemory:
    """The largest memory in use on card 0, and what the card is."""

    def __init__(self) -> None:
        self._read = 0.0
        self.used = 0.0  # MB
        self.card: dict[str, str] = {}

    def sample(self) -> None:
        if time.monotonic() - self._read < CARD_SAMPLE_S:
            return
        self._read = time.monotonic()
        fields = ("name", "driver_version", "memory.total", "memory.used")
        try:
            line = subprocess.run(
                ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return
        self.card = dict(zip(fields, line.split(", "), strict=True))
        self.used = max(self.used, float(self.card.pop("memory.used")) * 1.048576)  # MiB


@contextlib.contextmanager
def watched(*watches: Any) -> Iterator[None]:
    """Sample until the block ends."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            for each in watches:
                each.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ---- the weights ----


def synthesize(folder: Path, layout: str) -> dict[str, Any]:
    """Seconds and bytes; nearly none of either where they are there already."""
    before, started = free_bytes(folder), time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "server", "weights", "synthesize", "--profile=exact"),
            *(f"--weights-dir={folder}", f"--layout={layout}"),
        ],
        cwd=ROOT,
        env=without_settings(),
        check=True,
    )
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 1), "written_gb": round((before - free_bytes(folder)) / 1e9, 1)}


def free_bytes(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def largest_tensor_mb() -> float:
    """In bfloat16, as it is loaded."""
    from weights.manifest import Choice, needed
    from weights.tables import table

    names = [checkpoint.table for checkpoint in needed(Choice(), "exact") if checkpoint.table]
    sizes = [shape for name in names for shape in table(name).values()]
    return max(2 * product(shape) for shape in sizes) / _MB


def product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def without_settings() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("FLUX_PULID_")}


# ---- the server ----


def measure_server(folder: Path, pictures: int) -> dict[str, Any]:
    """Load through `serve`, paint over HTTP."""
    with tempfile.TemporaryDirectory(prefix="flux-pulid-") as scratch:
        log = Path(scratch) / "log"
        started = time.monotonic()
        process = start_server(folder, Path(scratch) / "data", log)
        host, card = HostMemory(process.pid), CardMemory()
        try:
            with watched(host, card):
                url = wait_until_ready(process, log)
                loaded = {
                    "seconds": round(time.monotonic() - started, 1),  # from the start of the process
                    "host": host.facts(),
                    "card_mb": round(card.used),
                }
                painted = [paint(url, seed) for seed in range(pictures)]
            process.send_signal(signal.SIGTERM)
            exit_code = process.wait(END_S)
        finally:
            end(process)
        return {
            "load": loaded,
            "pictures": painted,
            "peak": {"host": host.facts(), "card_mb": round(card.used)},
            "card": card.card,
            "exit_code": exit_code,
            "log_tail": log.read_text(errors="replace").splitlines()[-5:] if exit_code else [],
        }


def start_server(folder: Path, data: Path, log: Path) -> subprocess.Popen[bytes]:
    flags = [f"--weights-dir={folder}", f"--data-dir={data}", "--port=0", "--devices=0"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--profile=exact", *flags],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=without_settings(),
            start_new_session=True,
        )


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The server's address."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if process.poll() is not None:
            sys.exit(f"The server ended with {process.returncode}:\n{text[-3000:]}")
        found = re.findall(r"^Listening on (http://\S+)", text, re.MULTILINE)
        if found and answers(f"{found[-1]}/ready"):
            return str(found[-1])
        time.sleep(0.1)
    sys.exit(f"The server was not ready in {READY_S:.0f} s:\n{log.read_text(errors='replace')[-3000:]}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own server
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def paint(url: str, seed: int) -> dict[str, Any]:
    """One picture, as a client asks for it."""
    photo = base64.b64encode(PHOTO.read_bytes()).decode()
    body = {
        "main_face_image": f"data:image/jpeg;base64,{photo}",
        "prompt": "portrait, neon color, cinematic",
        "width": WIDTH,
        "height": HEIGHT,
        "num_steps": STEPS,
        "seed": seed,
        "output_format": "png",
    }
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/v1/flux-pulid", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started = time.monotonic()
    with urllib.request.urlopen(request, timeout=PICTURE_S) as response:  # noqa: S310
        content, headers = response.read(), response.headers
    return {
        "call_s": round(time.monotonic() - started, 3),
        "generation_s": float(headers["x-generation-time"]),
        "seed": int(headers["x-seed-value"]),
        **facts_of_picture(content),
    }


def facts_of_picture(content: bytes) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert pixels.shape == (HEIGHT, WIDTH, 3), pixels.shape
    return {
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "mean": round(float(pixels.mean()), 2),
        "std": round(float(pixels.std()), 2),  # 0 would be a picture of nothing
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- the loader alone ----


def measure_loader(folder: Path, device: str) -> dict[str, Any]:
    """In a process of its own, so that its memory is that of the loading."""
    process = subprocess.Popen(
        [sys.executable, __file__, f"--folder={folder}", f"--device={device}", "--loader"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=without_settings(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    host, card = HostMemory(process.pid), CardMemory()
    try:
        with watched(host, *([card] if device.startswith("cuda") else [])):
            before_torch = json.loads(process.stdout.readline() or "null")
            imported = host.facts()
            told = json.loads(process.stdout.readline() or "null")
            time.sleep(2 * MAPS_SAMPLE_S)
        process.stdin.close()
        exit_code = process.wait(END_S)
    finally:
        end(process)
    if told is None:
        sys.exit(f"The loader ended with {exit_code}.")
    return {
        "load": {
            "seconds": told["load_s"],
            "import_seconds": before_torch["import_s"],
            "gigabytes": told["gigabytes"],
            "seconds_by_part": told["by_part"],
            "host": host.facts(),
            "host_after_imports_mb": imported["peak_of_one_process_mb"],
        },
        **({"peak": {"card_mb": round(card.used)}, "card": card.card} if card.card else {}),
        "exit_code": exit_code,
    }


def loader(folder: Path, device: str) -> None:
    """The process that is watched: two lines of JSON, then it waits to be ended."""
    started = time.perf_counter()
    from pulid.load import load_engine
    from pulid.profiles import PROFILES
    from weights.paths import model_paths

    print(json.dumps({"import_s": round(time.perf_counter() - started, 1)}), flush=True)
    ends: dict[str, float] = {}
    size = 0

    def listen(progress: Any) -> None:
        nonlocal size
        ends[progress.part] = time.perf_counter()
        size = progress.total_bytes

    started = time.perf_counter()
    engine = load_engine(PROFILES["exact"], model_paths(folder), device, progress=listen)
    loaded = time.perf_counter()
    begins = [started, *ends.values()]
    by_part = {part: round(at - begin, 2) for (part, at), begin in zip(ends.items(), begins, strict=False)}
    print(
        json.dumps(
            {"load_s": round(loaded - started, 1), "gigabytes": round(size / 1e9, 1), "by_part": by_part}
        ),
        flush=True,
    )
    sys.stdin.read()
    engine.close()


# ---- what comes of it ----


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": len(git("status", "--porcelain").splitlines()),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def git(*arguments: str) -> str:
    """Empty outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def print_table(line: dict[str, Any]) -> None:
    load, made = line["load"], line["synthesize"]
    rows = [
        ("weights made", f"{made['seconds']} s, {made['written_gb']} GB"),
        ("loaded in", f"{load['seconds']} s"),
        ("host memory of its own, at most", f"{load['host']['peak_of_one_process_mb']} MB"),
        ("  beside the largest tensor", f"{line['beside_largest_tensor_mb']} MB, target {line['target_mb']}"),
    ]
    if "peak" in line:
        rows.append(("memory of the card, at most", f"{line['peak']['card_mb']} MB"))
    for picture in line.get("pictures", []):
        rows.append((f"picture {picture['seed']}", f"{picture['call_s']} s, std {picture['std']}"))
    for label, text in rows:
        print(f"{label:<34}{text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the weights are made; 37 GB free")
    parser.add_argument("--layout", choices=("bfl", "diffusers"), default="bfl")
    parser.add_argument("--device", default="cuda", help="for --load-only: cuda or cpu")
    parser.add_argument("--load-only", action="store_true", help="no server and no pictures")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--loader", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.loader:
        loader(chosen.folder, chosen.device)
        return 0
    if not chosen.load_only and chosen.device == "cpu":
        parser.error("The profile exact paints on a GPU only: --device cpu needs --load-only.")

    made = synthesize(chosen.folder, chosen.layout)
    measured = (
        measure_loader(chosen.folder, chosen.device)
        if chosen.load_only
        else measure_server(chosen.folder, chosen.pictures)
    )
    beside = measured["load"]["host"]["peak_of_one_process_mb"] - largest_tensor_mb()
    now = datetime.now(UTC)
    name = f"full-size-load-{chosen.device}" if chosen.load_only else "full-size"
    line = {
        "bench": name,
        "date": now.isoformat(timespec="seconds"),
        "profile": "exact",
        "layout": chosen.layout,
        "weights": "random",
        "synthesize": made,
        **measured,
        "largest_tensor_mb": round(largest_tensor_mb()),
        "beside_largest_tensor_mb": round(beside),
        "target_mb": TARGET_MB,
        **machine(),
    }
    print_table(line)
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / f"{name}-{now:%Y-%m-%d}.json").write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))
    return 0 if beside < TARGET_MB and measured["exit_code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
