"""The profile turbo on a GPU of compute capability 8.9 and later, at full size with random weights.

python -m pytest -m gpu -s tests/gpu/test_turbo_on_cuda.py        under six minutes; needs 60 GB

Prints what nobody knows yet: the time of a skipped step and of a whole one, what waiting for the first
block costs, and the peak of memory. What share of real steps is skipped, only real weights can say.
"""

import dataclasses
import time

import pytest
import torch

from gpu.full_size import MARKS, random_engine
from pulid.engine import GenerationRequest
from pulid.parts import FLUX_DEV
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")
REQUEST = GenerationRequest(prompt="a portrait", seed=1, width=896, height=1152, num_steps=9)
GUIDED = dataclasses.replace(REQUEST, true_cfg=2.0, num_outputs=2, num_steps=5)
WHATEVER, HARDLY = 1e9, 1e-9  # thresholds: all that may be skipped is, and nothing


@pytest.fixture(scope="module")
def engine():
    """One engine for all thresholds: they are read when a request is admitted."""
    engine = random_engine(dataclasses.replace(FLUX_DEV, clip=MARKS), PROFILES["turbo"], CUDA)
    engine.warm_up()
    yield engine
    engine.close()


def walked(engine, threshold, request):
    """Latents, skipped steps and the seconds of each step; threshold 0 is what fp8 computes."""
    engine._skip_threshold = threshold
    engine.admit("job", request)
    seconds, denoised = [], None
    while denoised is None:
        started = time.perf_counter()
        (event,) = engine.step()
        seconds.append(time.perf_counter() - started)
        denoised = event.denoised
    return denoised.latents.packed.clone(), denoised.skipped_steps, seconds


@pytest.mark.parametrize("request_of", [REQUEST, GUIDED], ids=["one row", "four rows"])
def test_where_no_step_is_near_enough_the_bytes_are_those_of_fp8(engine, request_of):
    plain, _, _ = walked(engine, 0.0, request_of)
    cached, skipped, _ = walked(engine, HARDLY, request_of)
    assert skipped == 0
    assert torch.equal(plain, cached)


@pytest.mark.parametrize("request_of", [REQUEST, GUIDED], ids=["one row", "four rows"])
def test_what_a_skipped_step_costs_is_told_and_skipping_gives_the_same_bytes_again(engine, request_of):
    walked(engine, WHATEVER, request_of)
    torch.cuda.reset_peak_memory_stats()
    whole, _, without = walked(engine, 0.0, request_of)
    peak = torch.cuda.max_memory_allocated()
    _, _, watched = walked(engine, HARDLY, request_of)
    latents, skipped, seconds = walked(engine, WHATEVER, request_of)
    again, _, _ = walked(engine, WHATEVER, request_of)
    grown = torch.cuda.max_memory_allocated() - peak
    branches = 1 if request_of.true_cfg == 1.0 else 2
    assert skipped == branches * (6 if request_of is REQUEST else 3)
    assert torch.equal(latents, again)
    apart = float((latents - whole).float().norm() / whole.float().norm())
    print(
        f"\n{1000 * sorted(without)[len(without) // 2]:.1f} ms a whole step,"
        f" {1000 * sorted(watched)[len(watched) // 2]:.1f} ms where its first block is waited for,"
        f" {1000 * seconds[1]:.1f} ms a skipped one, {grown / 1e6:.0f} MB more at most,"
        f" {apart:.4f} apart after {skipped} skipped"
    )
    assert torch.cuda.max_memory_allocated() < PROFILES["turbo"].device_memory
