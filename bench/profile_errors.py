"""How far each lossy profile is from exact: latents after all steps, and pictures. On random weights.

    python bench/profile_errors.py                                   on a GPU host, about 4 minutes on an H200
    python bench/profile_errors.py --device cpu --scale tiny         emulated, anywhere, in a minute

The same random weights, noise, text and identity for all; relative L2 of the latents, and the PSNR of the
pictures in 8 bits. What a face loses needs real weights: `flux-pulid evaluate` with either profile tells.
Ends with a table and one line of JSON, which it also writes to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pulid.torchvision_guard  # noqa: E402, F401

# isort: split
import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.cases import Case  # noqa: E402
from bench.device import check_device, facts, short_name  # noqa: E402
from bench.measure import relative  # noqa: E402
from bench.random_model import SCALES, SEED, engine_of, random_parts, random_request  # noqa: E402
from bench.record import RESULTS, PartFile  # noqa: E402
from bench.rows import Ours  # noqa: E402
from pulid.profiles import PROFILES, SpeedProfile  # noqa: E402

CASES = (
    Case(repeats=2),
    Case(width=512, height=512, repeats=2),
    Case(width=512, height=512, repeats=1, changes={"true_cfg": 2.0}),
)


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def lossy(device: torch.device) -> list[SpeedProfile]:
    """On a CPU the same arithmetic is emulated."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    return [replace(p, device=kind) for p in PROFILES.values() if p.linears != "full"]


def paint(row: Ours, case: Case, scale_name: str) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Latents and picture of each seed."""
    scale = SCALES[scale_name]
    made = []
    for number in range(case.repeats):
        request = random_request(
            scale,
            case.width,
            case.height,
            num_steps=scale.num_steps,
            seed=SEED + 1000 * number,
            **case.changes,
        )
        packed = row.loop(request)(lambda: None)
        made.append((packed.float().cpu(), row.pictures(packed, request)[0]))
    return made


def psnr(got: np.ndarray, expected: np.ndarray) -> float:
    """In dB, of pictures in 8 bits; infinite for equal ones."""
    square = float(np.mean((got.astype(np.float64) - expected) ** 2))
    return math.inf if square == 0 else 10 * math.log10(255**2 / square)


def compared(ours: list[Any], exact: list[Any]) -> dict[str, float]:
    """Means over the seeds."""
    pairs = list(zip(ours, exact, strict=True))
    return {
        "relative_latent_error": round(statistics.mean(relative(a[0], b[0]) for a, b in pairs), 5),
        "psnr_db": round(statistics.mean(psnr(a[1], b[1]) for a, b in pairs), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of casts that build_networks means
    device = check_device(chosen.device, chosen.scale)
    say("making the model")
    parts = random_parts(SCALES[chosen.scale], device, torch.bfloat16)
    exact = replace(PROFILES["exact"], device=chosen.device if device.type == "cpu" else "cuda")
    rows = {p.name: Ours(engine_of(parts, p, device), p.name) for p in (exact, *lossy(device))}
    stem = "-".join(["errors", *([chosen.scale] if chosen.scale != "full" else []), short_name(device)])
    names = [name for name in rows if name != "exact"]
    file = PartFile(chosen.results, stem, {"scale": chosen.scale, "rows": names})
    for case in CASES:
        say(case.name)
        made = {row: paint(rows[row], case, chosen.scale) for row in rows}
        file.cases[case.name] = {row: compared(made[row], made["exact"]) for row in names}
    how = "measured" if device.type == "cuda" else "emulated on a CPU"
    say(f"wrote {file.write(bench='errors', weights='random', how=how, **facts(device))}")
    for name, told in file.cases.items():
        for row, errors in told.items():
            print(
                f"{name:<24} {row:<8} latents {errors['relative_latent_error']:.5f}  {errors['psnr_db']} dB"
            )
    print(json.dumps({"bench": "errors", "how": how, "cases": file.cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
