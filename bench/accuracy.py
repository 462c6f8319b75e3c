"""How far bfloat16 latents are from float32 ones after all steps: this project's profiles and the reference.

    python bench/accuracy.py                                   on a GPU host, about 4 minutes on an H200
    python bench/accuracy.py --device cpu --scale tiny         every line, anywhere, in seconds

The same random weights, noise, text and identity for all. The yardstick is the reference's arithmetic in
true float32 (no TF32) with the bfloat16 weights widened. It is told times and guidance as bfloat16 rounds
them: else that rounding, which all rows share, would hide how they differ. The float32 model is gone before
the others begin, so the card needs 110 GB at most. Target: the error of the profile exact is no larger than
1.1 times the reference's own, as means over the seeds; the script ends with 1 when it is. Ends with a table
and one line of JSON, which it also writes to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pulid.torchvision_guard  # noqa: E402, F401

# isort: split
import diffusers  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.cases import Case  # noqa: E402
from bench.device import check_device, facts, short_name  # noqa: E402
from bench.measure import relative  # noqa: E402
from bench.random_model import (  # noqa: E402
    SCALES,
    SEED,
    backend_of,
    engine_of,
    given_to,
    random_parts,
    random_request,
    shell,
)
from bench.record import RESULTS, PartFile  # noqa: E402
from bench.reference import ReferenceFlux  # noqa: E402
from bench.reference import denoise as reference_loop  # noqa: E402
from bench.rows import rows_of  # noqa: E402
from bench.variants import ALL, variants_of  # noqa: E402
from pulid.engine import GenerationRequest  # noqa: E402
from pulid.parts import Parts  # noqa: E402
from pulid.pipeline import PulidFluxEngine  # noqa: E402
from pulid.profiles import PROFILES, SpeedProfile  # noqa: E402

BOUND = 1.1  # times the reference's own error
CASES = (Case(repeats=2), Case(width=512, height=512, repeats=3))  # repeats: seeds
SEED_STEP = 1000  # far apart, so that pictures of one seed are not another's


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def profiles_for(device: str) -> list[SpeedProfile]:
    """The device's without quantising, in bfloat16, which the tiny one is not in life; and one faster."""
    exact = (p for p in PROFILES.values() if p.device == device and p.linears == "full")
    profiles = [replace(profile, dtype="bfloat16") for profile in exact]
    return [*profiles, *variants_of(profiles[0], [ALL])]


def requests_of(case: Case, scale_name: str) -> Iterator[GenerationRequest]:
    scale = SCALES[scale_name]
    for number in range(case.repeats):
        yield random_request(
            scale, case.width, case.height, num_steps=scale.num_steps, seed=SEED + SEED_STEP * number
        )


def in_float32(parts: Parts, donor: PulidFluxEngine, scale_name: str) -> dict[str, list[Tensor]]:
    """Latents of each case and seed, on the host."""
    networks = parts.networks
    attentions = shell(networks.identity_attentions).float()
    flux = ReferenceFlux(networks.transformer, attentions, torch.float32)
    found = {}
    for case in CASES:
        say(f"{case.name} in float32")
        with torch.inference_mode():
            found[case.name] = [
                reference_loop(flux, given_to(donor, request, torch.float32), conditions=torch.bfloat16).cpu()
                for request in requests_of(case, scale_name)
            ]
    return found


def errors_of(case: Case, scale_name: str, rows: Mapping[str, Any], base: list[Tensor]) -> dict[str, Any]:
    """Relative errors of each row, and each profile's mean over the reference's mean."""
    errors: dict[str, list[float]] = {name: [] for name in rows}
    for request, exact in zip(requests_of(case, scale_name), base, strict=True):
        for name, row in rows.items():
            errors[name].append(relative(row.loop(request)(lambda: None).cpu(), exact))
    means = {name: statistics.mean(found) for name, found in errors.items()}
    return {
        "relative_errors": {
            name: [float(f"{error:.4g}") for error in found] for name, found in errors.items()
        },
        "over_reference": {
            name: round(mean / means["reference"], 4) for name, mean in means.items() if name != "reference"
        },
    }


def print_table(cases: Mapping[str, Any]) -> None:
    for name, told in cases.items():
        print(f"\n{name}: relative error against float32, by seed")
        for row, errors in told["relative_errors"].items():
            over = told["over_reference"].get(row)
            beside = "" if over is None else f"  {over:.3f} times the reference's"
            print(f"  {row:<14}" + " ".join(f"{error:9.5f}" for error in errors) + beside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of casts that build_networks means
    device = check_device(chosen.device, chosen.scale)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    profiles = profiles_for(chosen.device)

    say("making the model")
    parts = random_parts(SCALES[chosen.scale], device, torch.bfloat16)
    base = in_float32(parts, engine_of(parts, profiles[0], device), chosen.scale)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the float32 model
    names = ["reference", "peer", *(f"ours-{profile.name}" for profile in profiles)]
    rows = rows_of(parts, profiles, device, backend=backend_of(device), names=names)
    stem = "-".join(["accuracy", *([chosen.scale] if chosen.scale != "full" else []), short_name(device)])
    file = PartFile(chosen.results, stem, {"scale": chosen.scale, "rows": names})
    for case in CASES:
        say(f"{case.name} in bfloat16")
        file.cases[case.name] = errors_of(case, chosen.scale, rows, base[case.name])
    say(f"wrote {file.write(bench='accuracy', weights='random', bound=BOUND, **facts(device))}")
    print_table(file.cases)
    print(json.dumps({"bench": "accuracy", "bound": BOUND, "cases": file.cases}))
    ours = [f"ours-{profile.name}" for profile in profiles]
    worst = max(told["over_reference"][name] for told in file.cases.values() for name in ours)
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
