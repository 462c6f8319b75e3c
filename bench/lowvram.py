"""What the profiles of little memory take and cost: peaks, times, how much of the copying is hidden.

    python bench/lowvram.py                                   on a GPU host, about 5 minutes on an H200
    python bench/lowvram.py --int8                            as cards without fp8 compute; exact is left out
    python bench/lowvram.py --device cpu --scale tiny         every line, anywhere, in half a minute

One engine after the other, each loaded by the product's own loader from random weights, within the limit
that its profile enforces (exact: paints within the memory it promises). Each paints the default request
twice, with prompts and photos that are new. Then, where blocks are streamed: a step, one without copies, and
the copies alone. At last a request that is too large for the smallest limit, and another after it.

A card of 12 GB is imitated by torch's limit on a larger one: it has the larger one's speed.
Ends with a table and one line of JSON, which it also writes to bench/results/.
"""

from __future__ import annotations

import argparse
import gc
import json
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
import torch  # noqa: E402

from bench.device import check_device, facts, seconds_of, short_name, wait_for  # noqa: E402
from bench.random_model import SCALES, Scale, random_photo, random_request  # noqa: E402
from bench.record import RESULTS, PartFile  # noqa: E402
from files.tiny_files import TINY_FILES  # noqa: E402
from gpu.random_files import random_files  # noqa: E402
from pulid.engine import GenerationRequest, GenerationResult  # noqa: E402
from pulid.errors import OutOfMemory  # noqa: E402
from pulid.flux.streaming import InSlot, Mark, Parcel, Slots, Streamed  # noqa: E402
from pulid.load import engine_of, limit_memory  # noqa: E402
from pulid.parts import Architecture  # noqa: E402
from pulid.pipeline import PulidFluxEngine  # noqa: E402
from pulid.profiles import CONTEXT, LOW_MEMORY, PROFILES, SpeedProfile  # noqa: E402

SIZE = (896, 1152)
TOO_LARGE = (1536, 1536)
REPEATS = 3  # of a step, for each way


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def profiles_for(device: torch.device, *, int8: bool) -> list[SpeedProfile]:
    """On a CPU nothing is limited; there everything is streamed that can be."""
    in_int8 = [replace(profile, linears="int8") for profile in LOW_MEMORY]
    profiles = in_int8 if int8 else [PROFILES["exact"], *LOW_MEMORY]
    if device.type == "cuda":
        return profiles
    return [replace(p, device="cpu", memory_limit=min(p.memory_limit, 1)) for p in profiles]


def architecture_of(scale: Scale) -> Architecture:
    if scale.name == "full":
        return scale.architecture
    return replace(scale.architecture, t5=TINY_FILES.t5, clip=TINY_FILES.clip)


def measured(profile: SpeedProfile, scale: Scale, device: torch.device) -> dict[str, Any]:
    """One profile's figures. The engine is gone afterwards."""
    limit = profile.memory_limit or profile.device_memory - CONTEXT
    model = random_files(architecture_of(scale))
    reset_peak(device)
    started = time.perf_counter()
    engine = engine_of(model, profile, device)
    loading = {"seconds": round(time.perf_counter() - started, 1), **peak(device)}
    limit_memory(device, limit)
    told: dict[str, Any] = {"limit_gb": round(limit / 1e9, 2), "loading": loading}
    for picture, seed in (("first", 1), ("second", 2)):
        reset_peak(device)
        request = random_request(
            scale, *SIZE, prompt=f"portrait, {picture}", id_images=(random_photo(seed),), seed=seed
        )
        seconds, result = painted(engine, request, device)
        told[picture] = {"seconds": round(seconds, 3), **peak(device)}
        told[picture]["timings"] = {name: round(value, 4) for name, value in result.timings.items()}
    told["streaming"] = streaming(engine, random_request(scale, *SIZE), device)
    told["too_large"] = too_large(engine, scale, device)
    engine.close()
    return told


def painted(
    engine: PulidFluxEngine, request: GenerationRequest, device: torch.device
) -> tuple[float, GenerationResult]:
    """Seconds from photo and prompt to pixels. Raises OutOfMemory."""
    wait_for(device)
    started = time.perf_counter()
    engine.admit("job", request)
    denoised = None
    while events := engine.step():
        if events[-1].error is not None:
            raise events[-1].error
        denoised = events[-1].denoised
    assert denoised is not None
    result = engine.decode(denoised)
    wait_for(device)
    return time.perf_counter() - started, result


# ---- memory ----


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> dict[str, float]:
    """GB since the last reset; what the card has lost in all includes CUDA's own and other processes'."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved(device) / 1e9, 3),
        "card_gb": round((total - free) / 1e9, 3),
    }


def too_large(engine: PulidFluxEngine, scale: Scale, device: torch.device) -> dict[str, Any]:
    """Whether a request beyond the limit ends cleanly, and whether the next one has the bytes it had."""
    request = random_request(scale, *SIZE, num_steps=2)
    _, before = painted(engine, request, device)
    try:
        painted(engine, random_request(scale, *TOO_LARGE, num_outputs=4, num_steps=1), device)
        ended = "painted"
    except OutOfMemory:
        ended = "out of memory"
    _, after = painted(engine, request, device)
    same = all((a == b).all() for a, b in zip(before.images, after.images, strict=True))
    return {"ended": ended, "next_is_the_same": bool(same)}


# ---- copies ----


class NoCopies:
    """In place of a lane: the slots keep what they have, so a step has all its work and no copy."""

    def __init__(self, slots: Slots) -> None:
        self._lane = slots._lane

    def copy(self, parcel: Parcel, slot: torch.Tensor, after: Mark) -> Mark:
        return self._lane.mark()

    def wait(self, mark: Mark) -> None:
        if mark is not None:
            self._lane.wait(mark)

    def mark(self) -> Mark:
        return self._lane.mark()


def streaming(engine: PulidFluxEngine, request: GenerationRequest, device: torch.device) -> dict[str, Any]:
    """Seconds of a step, of one without copies, of the copies alone; empty where no block is streamed."""
    sequences = [getattr(engine._flux, name, None) for name in ("_doubles", "_singles")]
    blocks = [one for one in sequences if isinstance(one, Streamed) and one.streamed]
    if not blocks:
        return {}
    slots = blocks[0]._slots
    copies = seconds_of(lambda: [None for sequence in blocks for _ in sequence], device)
    engine.admit("job", replace(request, num_steps=2 * REPEATS + 2))
    engine.step()
    whole = statistics.median(seconds_of(engine.step, device) for _ in range(REPEATS))
    lane = slots._lane
    slots._lane = NoCopies(slots)
    work = statistics.median(seconds_of(engine.step, device) for _ in range(REPEATS))
    slots._lane = lane
    engine.cancel("job")
    items = [item for sequence in blocks for item in sequence._items]
    moved = sum(item.parcel.nbytes for item in items if isinstance(item, InSlot))
    return {
        "blocks": sum(sequence.streamed for sequence in blocks),
        "step_s": round(whole, 5),
        "step_without_copies_s": round(work, 5),
        "copies_s": round(copies, 5),
        "gb_per_s": round(moved / copies / 1e9, 2),
        # On a CPU nothing is beside anything.
        "hidden_percent": round(100 * (1 - (whole - work) / copies), 1) if device.type == "cuda" else None,
    }


def print_table(cases: dict[str, Any]) -> None:
    for name, told in cases.items():
        first, second, moving = told["first"], told["second"], told["streaming"]
        memory = " / ".join(str(second.get(key, "-")) for key in ("allocated_gb", "reserved_gb", "card_gb"))
        hidden = f"{moving['blocks']} blocks, {moving['hidden_percent']} % hidden" if moving else "no blocks"
        print(
            f"{name:<12} limit {told['limit_gb']} GB, at most {memory}; {first['seconds']} s, then"
            f" {second['seconds']} s; streamed: {hidden}; too large: {told['too_large']['ended']}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--int8", action="store_true", help="for cards below compute capability 8.9")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of casts that build_networks means
    device, scale = check_device(chosen.device, chosen.scale), SCALES[chosen.scale]
    kind = ["int8"] * chosen.int8 + [scale.name] * (scale.name != "full")
    file = PartFile(
        chosen.results,
        "-".join(["lowvram", *kind, short_name(device)]),
        {"scale": scale.name, "linears": "int8" if chosen.int8 else "fp8"},
    )
    for profile in profiles_for(device, int8=chosen.int8):
        say(profile.name)
        file.cases[profile.name] = measured(profile, scale, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say(f"wrote {file.write(bench='lowvram', weights='random', **facts(device))}")
    print_table(file.cases)
    print(json.dumps({"bench": "lowvram", "cases": file.cases}))
    return 0 if all(told["too_large"]["next_is_the_same"] for told in file.cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
