"""What is measured, in parts of a few minutes each, and how long a part will take on an H200.

The forecast divides each row's operations by a rate: for the reference and the peer what others published
for the same chip at the same precision, for this project's rows the reference's, which they must beat.
The peer in fp8 is taken to be as fast as in bfloat16 at least.
Knows no device and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.flops import FLUX_DEV_SHAPE, FluxShape, forward
from bench.variants import ALL, VARIANTS, variant_of

TEXT_TOKENS = 128
PIXELS_PER_TOKEN = 16
# TFLOP/s on one H200 in bfloat16, from the timings in SGLang's pull request 19673: diffusers eager, compiled.
PUBLISHED_RATE = {"reference": 379.0, "peer": 491.0, "peer-fp8": 491.0}
DEFAULT_RATE = 379.0
START_S = 60.0  # imports, modules, weights
COMPILE_S = 25.0  # a compiled row, for each size
TUNING_S = 20.0  # of the peer in fp8 beyond that: a guess; see torchao_peer.OPTIONS
PROFILED_STEPS = 2
ALL_ROWS: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request, asked of several rows."""

    width: int = 896
    height: int = 1152
    num_steps: int = 20
    repeats: int = 3
    rows: Sequence[str] = ALL_ROWS  # beginnings of names
    variants: Sequence[str] = ()  # of this project's profiles
    as_it_is: bool = True  # whether the profiles without a variant are taken, too
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the request

    @property
    def name(self) -> str:
        changed = "".join(f"-{name.replace('_', '-')}-{value:g}" for name, value in self.changes.items())
        return f"{self.width}x{self.height}{changed}"

    def takes(self, row: str) -> bool:
        variant = variant_of(row)
        is_named = not self.rows or row.startswith(tuple(self.rows))
        is_wanted = variant in self.variants if variant else self.as_it_is or not row.startswith("ours")
        return is_named and is_wanted

    def forwards(self, num_steps: int | None = None) -> int:
        """Rows that go through the transformer in one loop."""
        branches = 2 if self.changes.get("true_cfg", 1.0) != 1.0 else 1
        return branches * int(self.changes.get("num_outputs", 1)) * (num_steps or self.num_steps)


WITH_IDENTITY = ("reference", "peer", "ours")
PARTS: dict[str, tuple[Case, ...]] = {
    "headline": (Case(repeats=20),),
    "small": (Case(width=512, height=512, repeats=20),),
    "sizes": (
        Case(width=1024, height=1024, rows=WITH_IDENTITY),
        Case(width=1536, height=1536, rows=WITH_IDENTITY),
    ),
    "cfg": (Case(rows=WITH_IDENTITY, changes={"true_cfg": 2.0}),),
    "outputs": (Case(rows=WITH_IDENTITY, changes={"num_outputs": 4}),),
    "whole": (Case(rows=WITH_IDENTITY, repeats=4),),  # from prompt to file; see bench/whole.py
    # First runs, without and with a compile cache.
    "restart": (Case(rows=("peer", "ours"), repeats=1, variants=(ALL,)),),
    "variants": (Case(rows=("reference", "peer-fp8", "ours"), variants=tuple(VARIANTS)),),
    # Of many sizes; see bench.many_requests.py.
    "requests": (Case(rows=("ours",), repeats=1000, variants=(ALL,), as_it_is=False),),
}
# Beside lossy profiles there are more rows: both sizes in one part, and fewer repeats.
LOSSY_HEADLINE = tuple(
    Case(width=width, height=height, repeats=8, rows=WITH_IDENTITY)
    for width, height in ((896, 1152), (512, 512))
)

REQUEST_SIZES = (
    (256, 256), (320, 256), (384, 384), (448, 320), (512, 512), (512, 768),
    (640, 640), (640, 448), (768, 512), (704, 704), (896, 1152), (1024, 1024),
)  # fmt: skip
REQUEST_STEPS = 2.5  # on average
WARM_UP_STEPS = (20, 4)  # of two requests of each size: a step is captured at the 21st of its shape


def image_tokens(width: int, height: int) -> int:
    return -(-width // PIXELS_PER_TOKEN) * -(-height // PIXELS_PER_TOKEN)


def tflop_of(
    case: Case,
    *,
    has_identity: bool = True,
    num_steps: int | None = None,
    divisor: int = 1,
    shape: FluxShape = FLUX_DEV_SHAPE,
) -> float:
    """Of one loop, in the reference's form."""
    once = forward(image_tokens(case.width // divisor, case.height // divisor), TEXT_TOKENS, shape)
    work = once.with_identity if has_identity else once.plain
    return case.forwards(num_steps) * work / 1e12


def mean_tflop(case: Case) -> float:
    """Of one step of a request of mixed sizes."""
    sizes = (replace(case, width=width, height=height, num_steps=1) for width, height in REQUEST_SIZES)
    return sum(map(tflop_of, sizes)) / len(REQUEST_SIZES)


def expected_s(part: str, case: Case, rows: Sequence[str]) -> float:
    """Seconds of one case on an H200, without the start of the process."""
    taken = [row for row in rows if case.takes(row)]
    compiled = [row for row in taken if row.startswith("peer") or row.endswith(("+compiled", f"+{ALL}"))]
    compile_s = sum(COMPILE_S + (TUNING_S if row == "peer-fp8" else 0) for row in compiled)
    loops = {row: tflop_of(case) / PUBLISHED_RATE.get(row, DEFAULT_RATE) for row in taken}
    if part == "requests":
        steps = len(REQUEST_SIZES) * sum(WARM_UP_STEPS) + case.repeats * REQUEST_STEPS
        return len(taken) * (COMPILE_S + steps * mean_tflop(case) / DEFAULT_RATE)
    if part == "restart":
        return 2 * START_S + sum(4 * loops[row] for row in compiled) + 2 * compile_s  # cold, then warm
    looks = 3 * PROFILED_STEPS / case.num_steps  # into the kernels
    runs = case.repeats + warm_ups(case) + looks
    return sum(runs * loops[row] for row in taken) + compile_s


def warm_ups(case: Case) -> int:
    """Runs before the first that counts."""
    return 2 if case.repeats > 3 or case.variants else 1
