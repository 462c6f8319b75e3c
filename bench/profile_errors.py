"""How far each lossy profile is from exact: latents after all steps, and pictures.

    python bench/profile_errors.py                                   on a GPU host, about 4 minutes on an H200
    python bench/profile_errors.py --device cpu --scale tiny         emulated, anywhere, in a minute
    python bench/profile_errors.py --device cpu --scale trained      alike, with the trained model of tiny
    python bench/profile_errors.py --threshold 0.05 --threshold 0.2  turbo at these thresholds, too

The same weights, noise, text and identity for all; relative L2 of the latents, and the PSNR of the pictures
in 8 bits; of profiles that skip steps, the share of them. The weights are random, and so are their steps,
but for the scale trained: the small model that comes with the package, over photos of the tests. What a face
loses needs real weights: `flux-pulid evaluate` with either profile tells. Ends with a table and one line of
JSON, which it also writes to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
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
from bench.random_model import SCALES, SEED, Scale, engine_of, random_parts, random_request  # noqa: E402
from bench.record import RESULTS, PartFile  # noqa: E402
from bench.rows import Ours  # noqa: E402
from model.portraits import photo as portrait_of  # noqa: E402 - of the tests, as random_model has them
from pulid.parts import Parts  # noqa: E402
from pulid.profiles import PROFILES, SpeedProfile  # noqa: E402
from pulid.tiny import tiny_engine  # noqa: E402

TRAINED = replace(SCALES["tiny"], name="trained", divisor=2, num_steps=20)
MODELS = {**SCALES, TRAINED.name: TRAINED}
PEOPLE = ("collins", "obama")  # of the photos of the tests
CASES = (
    Case(repeats=2),
    Case(width=512, height=512, repeats=2),
    Case(width=512, height=512, repeats=1, changes={"true_cfg": 2.0}),
)


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def made_of(scale: Scale, device: torch.device) -> Parts:
    return tiny_engine().parts if scale is TRAINED else random_parts(scale, device, torch.bfloat16)


def compared_profiles(scale: Scale, thresholds: Sequence[float]) -> list[SpeedProfile]:
    """exact, and the lossy ones: on a CPU the same arithmetic is emulated.

    lowvram-* have that of fp8, and on cards without it the one that is called int8 here.
    """
    lossy = [p for p in PROFILES.values() if p.linears != "full" and not p.memory_limit]
    lossy.append(replace(PROFILES["fp8"], name="int8", linears="int8"))
    turbo = [replace(PROFILES["turbo"], name=f"turbo-{x:g}", skip_threshold=x) for x in thresholds]
    profiles = (PROFILES["exact"], *lossy, *turbo)
    return [replace(p, dtype="float32") for p in profiles] if scale is TRAINED else list(profiles)


def paint(row: Ours, case: Case, scale: Scale) -> list[tuple[torch.Tensor, np.ndarray, float]]:
    """Latents and picture of each seed, and the share of the steps that were skipped, in per cent."""
    made = []
    for number in range(case.repeats):
        photo = {"id_images": (portrait_of(PEOPLE[number]),)} if scale is TRAINED else {}
        request = random_request(
            scale,
            case.width,
            case.height,
            num_steps=case.num_steps,
            seed=SEED + 1000 * number,
            **photo,
            **case.changes,
        )
        packed = row.loop(request)(lambda: None)
        skipped = 100 * row.skipped_steps / case.forwards()
        made.append((packed.float().cpu(), row.pictures(packed, request)[0], skipped))
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
        "skipped_percent": round(statistics.mean(a[2] for a in ours), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=list(MODELS), default="full")
    parser.add_argument("--steps", type=int, help="default: the scale's own")
    parser.add_argument(
        "--threshold", type=float, action="append", default=[], help="of turbo, beside its own"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of casts that build_networks means
    device = check_device(chosen.device, chosen.scale)
    say("making the model")
    scale = MODELS[chosen.scale]
    if scale is TRAINED and device.type != "cpu":
        parser.error("the trained model is one for the CPU: add --device cpu")
    parts = made_of(scale, device)
    profiles = compared_profiles(scale, chosen.threshold)
    rows = {p.name: Ours(engine_of(parts, p, device), p.name) for p in profiles}
    kind = [scale.name] * (scale.name != "full") + [f"{chosen.steps}-steps"] * bool(chosen.steps)
    names = [name for name in rows if name != "exact"]
    setting = {"scale": scale.name, "rows": names, "num_steps": chosen.steps or scale.num_steps}
    file = PartFile(chosen.results, "-".join(["errors", *kind, short_name(device)]), setting)
    for case in (replace(case, num_steps=setting["num_steps"]) for case in CASES):
        say(case.name)
        made = {row: paint(rows[row], case, scale) for row in rows}
        file.cases[case.name] = {row: compared(made[row], made["exact"]) for row in names}
    how = "measured" if device.type == "cuda" else "emulated on a CPU"
    weights = "small, trained" if scale is TRAINED else "random"
    say(f"wrote {file.write(bench='errors', weights=weights, how=how, **facts(device))}")
    for name, told in file.cases.items():
        for row, errors in told.items():
            print(
                f"{name:<24} {row:<10} latents {errors['relative_latent_error']:.5f}  {errors['psnr_db']} dB"
                f"  skipped {errors['skipped_percent']} %"
            )
    print(json.dumps({"bench": "errors", "how": how, "cases": file.cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
