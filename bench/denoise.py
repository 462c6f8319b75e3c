"""Denoising, side by side: the reference, a compiled peer, plain FLUX, and this project's profiles.

    python bench/denoise.py                                    on a GPU host: again until it says complete
    python bench/denoise.py --part headline                    one part; each takes under 9 minutes on an H200
    python bench/denoise.py --device cpu --scale tiny          every line, anywhere; no figure to keep
    python bench/denoise.py --profile exact --profile fp8 --profile turbo --part headline
                                                               lossy profiles beside a peer in fp8 (extra gpu)

Random weights at full size, made on the device, and random data; rows in the order A B C D, D C B A, ...
Parts and cases whose results are there already, from the same sources, are skipped; no case is started
that would not end within --budget. Ends with a table and one line of JSON; each part writes a file of its
own to bench/results/. Exit codes: 0 complete, 3 more to do: run the same command again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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

from bench.cases import LOSSY_HEADLINE, PARTS, START_S, Case, expected_s  # noqa: E402
from bench.device import check_device, facts, short_name  # noqa: E402
from bench.flops import FluxShape  # noqa: E402
from bench.many_requests import measure_requests  # noqa: E402
from bench.measure import Setup, measure  # noqa: E402
from bench.random_model import (  # noqa: E402
    SCALES,
    backend_of,
    check_activations,
    engine_of,
    given_to,
    random_parts,
    random_request,
    weights_gib,
)
from bench.record import RESULTS, PartFile  # noqa: E402
from bench.restart import CACHE_FOLDER, first_runs, measure_restarts  # noqa: E402
from bench.rows import is_lossy, left_out, row_names, rows_of  # noqa: E402
from bench.variants import variants_of  # noqa: E402
from bench.whole import measure_whole  # noqa: E402
from pulid.parts import Parts  # noqa: E402
from pulid.profiles import PROFILES, SpeedProfile  # noqa: E402

BUDGET_S = 520.0
MORE_TO_DO = 3


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def empty_compile_cache() -> Iterator[None]:
    """For this call alone: else the time that a row compiles would depend on earlier calls."""
    before = os.environ.get(CACHE_FOLDER)
    with tempfile.TemporaryDirectory(prefix="compile-cache-") as folder:
        os.environ[CACHE_FOLDER] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE_FOLDER)
            if before is not None:
                os.environ[CACHE_FOLDER] = before


# ---- what is asked for ----


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="may be given several times; default: all"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument(
        "--profile", action="append", help="of this project's rows; default: the device's without quantising"
    )
    parser.add_argument("--threshold", type=float, help="of the profile turbo, instead of its own")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for this call")
    parser.add_argument("--repeats", type=int, help="instead of each case's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--plan", action="store_true", help="only say what would be done, and how long it takes"
    )
    parser.add_argument("--first-runs", action="store_true", help=argparse.SUPPRESS)
    return parser


def profiles_of(chosen: argparse.Namespace) -> list[SpeedProfile]:
    own = [name for name, p in PROFILES.items() if p.device == chosen.device and p.linears == "full"]
    profiles = [PROFILES[name] for name in chosen.profile or own]
    if chosen.threshold is None:
        return profiles
    return [p if p.skip_threshold is None else replace(p, skip_threshold=chosen.threshold) for p in profiles]


def cases_of(part: str, chosen: argparse.Namespace) -> list[Case]:
    """Of the scale that is asked for."""
    steps = SCALES[chosen.scale].num_steps
    has_lossy = part == "headline" and any(map(is_lossy, profiles_of(chosen)))
    cases = LOSSY_HEADLINE if has_lossy else PARTS[part]
    return [replace(case, num_steps=steps, repeats=chosen.repeats or case.repeats) for case in cases]


def all_cases(parts: Sequence[str], chosen: argparse.Namespace) -> list[Case]:
    return [case for part in parts for case in cases_of(part, chosen)]


def with_variants(profiles: Sequence[SpeedProfile], cases: Sequence[Case]) -> list[SpeedProfile]:
    """The profiles, and every variant of them that a case asks for."""
    names = dict.fromkeys(name for case in cases for name in case.variants)
    return [*profiles, *(one for profile in profiles for one in variants_of(profile, list(names)))]


def possible_names(profiles: Sequence[SpeedProfile]) -> list[str]:
    """Of the rows that can be made here."""
    names = row_names(profiles)
    return [name for name in names if name not in left_out(names)]


def show_plan(parts: Sequence[str], chosen: argparse.Namespace) -> None:
    profiles = with_variants(profiles_of(chosen), all_cases(parts, chosen))
    names = possible_names(profiles)
    print_left_out(left_out(row_names(profiles)))
    print(f"{'seconds on an H200, at most':<44}{START_S:>6.0f}  start of each call")
    for part in parts:
        for case in cases_of(part, chosen):
            print(
                f"{part + ' ' + case.name:<44}{expected_s(part, case, names):>6.0f}  {case.repeats} repeats"
            )


# ---- the model ----


class Bench:
    """Makes the model when a part needs it."""

    def __init__(self, chosen: argparse.Namespace, parts: Sequence[str]) -> None:
        self.chosen = chosen
        self.device = torch.device(chosen.device)
        self.profiles = with_variants(profiles_of(chosen), all_cases(parts, chosen))
        self.left_out = left_out(row_names(self.profiles))  # rows, with the reason
        self.scale = SCALES[chosen.scale]
        self.dtype = getattr(torch, self.profiles[0].dtype)
        self.model: dict[str, Any] = {}  # what was found out about it
        self._setup: Setup | None = None

    def setup(self, names: Sequence[str] = ()) -> Setup:
        if self._setup is None:
            say("making the model")
            parts = random_parts(self.scale, self.device, self.dtype)
            rows = rows_of(parts, self.profiles, self.device, backend=backend_of(self.device), names=names)
            self._setup = Setup(
                rows=rows, scale=self.scale, shape=shape_of(parts), device=self.device, dtype=self.dtype
            )
            donor = engine_of(parts, self.profiles[0], self.device)
            given = given_to(donor, random_request(self.scale, 512, 512))
            self.model = {
                "weights": "random",
                "weights_gib": weights_gib(parts.networks),
                "behind_the_blocks": check_activations(parts.networks.transformer, given),
            }
            say(f"made: {self.model}")
        return self._setup

    def measure(self, part: str, case: Case) -> dict[str, Any]:
        if part == "restart":
            return measure_restarts(self.child_command(), say)
        if part == "requests":
            return measure_requests(case, self.setup(), say)
        if part == "whole":
            return measure_whole(case, self.setup(), say)
        return measure(case, self.setup(), say)

    def child_command(self) -> list[str]:
        flags = [f"--device={self.chosen.device}", f"--scale={self.chosen.scale}"]
        if self.chosen.threshold is not None:
            flags.append(f"--threshold={self.chosen.threshold}")
        return [__file__, "--first-runs", *flags, *(f"--profile={p.name}" for p in profiles_of(self.chosen))]


def shape_of(parts: Parts) -> FluxShape:
    """As the operations are counted."""
    networks = parts.networks
    config, attention = networks.transformer.config, networks.identity_attentions[0]
    return FluxShape(
        width=config.num_attention_heads * config.attention_head_dim,
        double_blocks=config.num_layers,
        single_blocks=config.num_single_layers,
        latent_width=config.in_channels,
        text_width=config.joint_attention_dim,
        identity_attentions=len(networks.identity_attentions),
        identity_inner=attention.heads * attention.dim_head,
        identity_heads=attention.heads,
        identity_kv_width=attention.to_kv.in_features,
        identity_tokens=networks.idformer.num_queries,
    )


# ---- parts ----


def run_part(part: str, bench: Bench) -> tuple[PartFile, bool]:
    """The part's file, and whether all of its cases are in it."""
    chosen = bench.chosen
    cases = cases_of(part, chosen)
    names = [name for name in possible_names(bench.profiles) if any(case.takes(name) for case in cases)]
    setting = {"scale": chosen.scale, "rows": names, "repeats": chosen.repeats}
    if chosen.threshold is not None:
        setting["threshold"] = chosen.threshold
    file = PartFile.open(chosen.results, stem_of(part, bench), setting)
    for case in cases:
        if case.name in file.cases:
            say(f"{part} {case.name} is there already")
            continue
        expected = expected_s(part, case, names) if chosen.scale == "full" else 0.0
        spent = time.monotonic() - STARTED
        if spent + expected > chosen.budget:
            say(f"{part} {case.name} would take {expected:.0f} s more: not begun")
            return file, False
        say(f"{part} {case.name}: {case.repeats} repeats, about {expected:.0f} s")
        file.cases[case.name] = {"repeats": case.repeats, "num_steps": case.num_steps} | bench.measure(
            part, case
        )
        path = file.write(
            bench="denoise", part=part, model=bench.model, left_out=bench.left_out, **facts(bench.device)
        )
        say(f"wrote {path}")
    return file, True


def stem_of(part: str, bench: Bench) -> str:
    """Of the result file: denoise-headline-h200; with the scale in it where it is not the full one."""
    scale = [] if bench.scale.name == "full" else [bench.scale.name]
    return "-".join(["denoise", *scale, part, short_name(bench.device)])


def print_left_out(reasons: dict[str, str]) -> None:
    for row, reason in reasons.items():
        print(f"The row {row} is left out: {reason}")


def print_tables(files: dict[str, PartFile]) -> None:
    for part, file in files.items():
        for name, case in file.cases.items():
            print(f"\n{part} {name}, {case['num_steps']} steps, {case['repeats']} repeats")
            for row, told in case["rows"].items():
                print(f"  {row:<28}{line_of(told)}")
            if case.get("ratios"):
                print("  " + ", ".join(f"{key} {value}" for key, value in case["ratios"].items()))


def line_of(told: dict[str, Any]) -> str:
    if "cold_first_s" in told:
        first = f"first run {told['cold_first_s']:8.2f} s cold, {told['warm_first_s']:8.2f} s warm"
        return f"{first}, then {told['then_s']:8.3f} s"
    if "requests" in told:
        grown = f"memory {told['memory_growth_mib']:+.1f} MiB"
        slowest = f"slowest {told['slowest_over_median']} times the median"
        return f"{told['requests']} requests, {told['graphs']} graphs made, {slowest}, {grown}"
    text = f"p50 {told['p50_s']:8.3f} s  p95 {told['p95_s']:8.3f} s"
    if "tflops" not in told:
        return f"{text}  outside denoise {told['outside_denoise_p50_ms']:8.1f} ms  {told['stages_p50_ms']}"
    kernels = next(value for key, value in told.items() if key.startswith("kernels"))
    return (
        f"{text}  {told['tflops']:7.1f} TFLOP/s  {told['share_of_matmul_peak_percent']:5.1f} % of peak"
        f"  {told['working_gib'] or 0:5.1f} GiB more  compile {told['compile_s']:5.1f} s"
        f"  skipped {told.get('skipped_percent', 0.0):4.1f} %"
        f"  graphs later {told['graphs_after_warm_up']}  sdpa {kernels['attention_backend']}"
    )


def summary(files: dict[str, PartFile], complete: bool) -> dict[str, Any]:
    """The last line of the output."""
    kept = ("p50_s", "p95_s", "tflops", "cold_first_s", "warm_first_s", "outside_denoise_p50_ms")
    kept += ("graphs", "memory_growth_mib", "slowest_over_median")
    return {
        "bench": "denoise",
        "complete": complete,
        "parts": {
            part: {
                name: {
                    "rows": {
                        row: {key: told[key] for key in kept if key in told}
                        for row, told in case["rows"].items()
                    },
                    "ratios": case.get("ratios", {}),
                }
                for name, case in file.cases.items()
            }
            for part, file in files.items()
        },
    }


def main() -> int:
    chosen = arguments().parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of casts that build_networks means
    parts = chosen.part or list(PARTS)
    if chosen.plan:
        show_plan(parts, chosen)
        return 0
    check_device(chosen.device, chosen.scale)
    if chosen.first_runs:
        bench = Bench(chosen, ["restart"])
        case = cases_of("restart", chosen)[0]
        names = [name for name in possible_names(bench.profiles) if case.takes(name)]
        print(json.dumps(first_runs(case, bench.setup(names), STARTED)))
        return 0
    bench = Bench(chosen, parts)
    files, complete = {}, True
    with empty_compile_cache():
        for part in parts:
            files[part], done = run_part(part, bench)
            complete = complete and done
    print_tables(files)
    print_left_out(bench.left_out)
    if not complete:
        print("\nNot complete: run the same command again.")
    print(json.dumps(summary(files, complete) | {"left_out": bench.left_out}))
    return 0 if complete else MORE_TO_DO


if __name__ == "__main__":
    sys.exit(main())
