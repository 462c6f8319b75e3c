"""The profiles lowvram-* on a GPU: the bytes of fp8, peaks below the stated ones, errors of one request.

    python -m pytest -m gpu -s tests/gpu/test_lowvram_on_cuda.py

At full size with random weights; under nine minutes; needs 40 GB of GPU memory for fp8, with which it
compares, and 40 GB of host memory. Compute capability 8.9 and later. Nothing skips: without a GPU these
tests fail.
"""

import dataclasses
import gc
import json
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bench.lowvram import streaming
from gpu.full_size import MARKS
from gpu.random_files import random_files
from model.portraits import portrait
from pulid.errors import OutOfMemory
from pulid.flux.streaming import CudaLane, Slots, leaves, padded_size, streamed, tuple_in_slot
from pulid.load import engine_of, limit_memory
from pulid.parts import FLUX_DEV
from pulid.profiles import LOW_MEMORY, PROFILES, with_t5_in_int8

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")
CYCLES = 2 * 10**8  # of `_sleep`: a tenth of a second or so, many copies' time
MB = 2**20


# ---- slots ----


class One(NamedTuple):
    tensor: torch.Tensor


def numbered(count, nbytes):
    """Named tuples of one tensor on the host, each full of its number."""
    return [One(torch.full((nbytes // 4,), float(number))) for number in range(count)]


def passes(sequence, before):
    """Each item's least and largest number, read late: `before` runs ahead of each reading."""
    read = []
    for item in sequence:
        before()
        read.append(torch.stack([item.tensor.min(), item.tensor.max()]))
    return torch.stack(read).cpu()


@pytest.mark.parametrize("cycles", [0, CYCLES], ids=["copies are late", "readers are late"])
def test_every_block_reads_its_own_weights(cycles):
    items = numbered(12, 64 * MB)
    slots = Slots(padded_size(x.nbytes for x in leaves(items[0])), CUDA)
    sequence = streamed([*items], range(12), slots, tuple_in_slot)
    for _ in range(3):
        got = passes(sequence, lambda: torch.cuda._sleep(cycles) if cycles else None)
        assert torch.equal(got, torch.arange(12.0)[:, None].expand(12, 2))


class Forgetful(CudaLane):
    """Leaves out one of the waits."""

    def __init__(self, forgets):
        super().__init__(CUDA)
        self._forgets = forgets

    def copy(self, parcel, slot, after):
        return super().copy(parcel, slot, None if self._forgets == "slot free" else after)

    def wait(self, mark):
        if self._forgets != "slot full":
            super().wait(mark)


@pytest.mark.parametrize(("forgets", "cycles"), [("slot free", CYCLES), ("slot full", 0)])
def test_without_one_of_the_waits_it_does_not(forgets, cycles):
    """Else the test above would show nothing."""
    items = numbered(12, 64 * MB)
    slots = Slots(padded_size(x.nbytes for x in leaves(items[0])), CUDA, Forgetful(forgets))
    sequence = streamed([*items], range(12), slots, tuple_in_slot)
    got = passes(sequence, lambda: torch.cuda._sleep(cycles) if cycles else None)
    assert not torch.equal(got, torch.arange(12.0)[:, None].expand(12, 2))
    torch.cuda.synchronize()


def test_copies_run_beside_what_is_computed():
    """Twelve copies and twelve pieces of work as long as one: nearly the time of the work alone."""
    items = numbered(12, 256 * MB)
    slots = Slots(padded_size(x.nbytes for x in leaves(items[0])), CUDA)
    sequence = streamed([*items], range(12), slots, tuple_in_slot)
    times = {}
    for name, cycles in (("copies", 0), ("both", 10**8), ("work", 10**8)):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(12) if name == "work" else sequence:
            torch.cuda._sleep(cycles)
        torch.cuda.synchronize()
        times[name] = time.perf_counter() - started
    print("\n" + json.dumps({name: round(seconds, 4) for name, seconds in times.items()}))
    assert times["both"] < max(times["copies"], times["work"]) + 0.3 * min(times["copies"], times["work"])


# ---- the profiles ----


def request(**changes):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    asked = {"id_images": (pixels,), "width": 896, "height": 1152, "num_steps": 20, "seed": 1, **changes}
    return portrait(None, **asked)


REQUESTS = (
    request(),
    request(width=640, height=512, true_cfg=2.0, num_steps=3),
    request(num_steps=2, seed=5),
)


@pytest.fixture(scope="module")
def files():
    """Made anew for each engine, which takes them over: the same numbers each time."""
    return lambda: random_files(dataclasses.replace(FLUX_DEV, clip=MARKS))


def latents_of(engine, asked):
    """Raises OutOfMemory."""
    engine.admit("job", asked)
    while events := engine.step():
        if events[-1].error is not None:
            raise events[-1].error
        denoised = events[-1].denoised
    engine.decode(denoised)
    return denoised.latents.packed.cpu()


@pytest.fixture(scope="module")
def expected(files):
    engine = engine_of(files(), PROFILES["fp8"], CUDA)
    latents = [latents_of(engine, asked) for asked in REQUESTS]
    engine.close()
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return latents


@pytest.mark.parametrize("profile", LOW_MEMORY, ids=lambda profile: profile.name)
def test_latents_are_those_of_fp8_and_the_peak_is_below_the_limit(profile, files, expected):
    torch.cuda.reset_peak_memory_stats()
    engine = engine_of(files(), profile, CUDA)
    try:
        for asked, latents in zip(REQUESTS, expected, strict=True):
            started = time.perf_counter()
            assert torch.equal(latents_of(engine, asked), latents)
            print(f"\n{profile.name}: {asked.width}x{asked.height}, {time.perf_counter() - started:.2f} s")
        assert torch.cuda.max_memory_reserved() <= profile.memory_limit
        free, total = torch.cuda.mem_get_info()
        facts = {
            "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
            "card_gb": (total - free) / 1e9,  # with CUDA's own: all of it, if nobody else is on the card
            **streaming(engine, REQUESTS[0], CUDA),
        }
        print(json.dumps(facts))
    finally:
        engine.close()
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        limit_memory(CUDA, 0)


def test_with_t5_in_int8_the_peak_is_smaller_and_what_is_streamed_has_the_same_bytes(files):
    """Loading counts as well: T5 is never on the card in bfloat16."""
    latents, peaks = [], []
    for profile in map(with_t5_in_int8, (PROFILES["fp8"], PROFILES["lowvram-12g"])):
        torch.cuda.reset_peak_memory_stats()
        engine = engine_of(files(), profile, CUDA)
        try:
            latents.append(latents_of(engine, REQUESTS[2]))
            peaks.append(torch.cuda.max_memory_allocated())
            assert peaks[-1] < (profile.memory_limit or profile.device_memory)
        finally:
            engine.close()
            del engine
            gc.collect()
            torch.cuda.empty_cache()
            limit_memory(CUDA, 0)
    print("\n" + json.dumps({"peaks_with_t5_in_int8_gb": [round(peak / 1e9, 2) for peak in peaks]}))
    assert torch.equal(*latents)


def test_a_request_beyond_the_limit_ends_and_the_next_one_has_its_bytes(files):
    engine = engine_of(files(), PROFILES["lowvram-12g"], CUDA)
    try:
        before = latents_of(engine, REQUESTS[2])
        for _ in range(2):
            with pytest.raises(OutOfMemory):
                latents_of(engine, request(width=1536, height=1536, num_outputs=4, num_steps=1))
            assert torch.equal(latents_of(engine, REQUESTS[2]), before)
    finally:
        engine.close()
        limit_memory(CUDA, 0)
