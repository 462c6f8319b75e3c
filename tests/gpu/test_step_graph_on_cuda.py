"""Steps as CUDA graphs: the bits of steps that are not captured, no growing memory, and threads beside.

    python -m pytest -m gpu -s tests/gpu/test_step_graph_on_cuda.py

The small recorded model first, then full size with random weights in bfloat16, in either form of the
blocks. Nothing skips: without a GPU these tests fail.
"""

import dataclasses
import json
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fused.stories import STORIES, Studio, assert_same, trace
from golden import flux_models
from gpu.full_size import MARKS, random_engine
from model.portraits import portrait, results
from pulid.flux import step_graph
from pulid.flux.fused import FusedFlux
from pulid.flux.step_graph import CapturedFlux, CudaRecorder
from pulid.parts import FLUX_DEV
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(590)]

CUDA = torch.device("cuda")
MIB = 2**20
PEOPLE = 4


# ---- the small model ----


@pytest.fixture(scope="module")
def golden_model():
    flux, modules = flux_models.model("A")
    flux.transformer.to(CUDA)
    yield {"diffusers": flux, "fused": FusedFlux(flux.transformer)}, list(modules.to(CUDA))
    flux_models.model.cache_clear()


@pytest.fixture(params=["diffusers", "fused"])
def studio(request, golden_model):
    forms, modules = golden_model
    return Studio(forms[request.param], modules)


def captured(forward):
    return CapturedFlux(forward, CudaRecorder(CUDA), recorded_after=0)


@pytest.mark.parametrize("shares_steps", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("name", STORIES)
@torch.inference_mode()
def test_every_step_has_the_bits_that_it_has_uncaptured(studio, name, shares_steps):
    expected = trace(studio.flux, studio, STORIES[name], shares_steps=shares_steps)
    graphs = captured(studio.flux)
    for _ in range(2):
        assert_same(trace(graphs, studio, STORIES[name], shares_steps=shares_steps), expected)
    print(graphs.described())
    assert graphs.replays > len(expected) // 2
    assert "refused" not in graphs.described()


@torch.inference_mode()
def test_when_all_graphs_are_gone_others_can_be_captured(studio):
    graphs, story = captured(studio.flux), STORIES["sizes in turn"]
    expected = trace(studio.flux, studio, story)
    for _ in range(3):
        assert_same(trace(graphs, studio, story), expected)
        assert graphs.recorded == 3
        graphs.forget()
    assert "refused" not in graphs.described()


@torch.inference_mode()
def test_graphs_that_are_evicted_make_room_for_others(studio, monkeypatch):
    monkeypatch.setattr(step_graph, "RECORDINGS", 2)
    graphs, story = captured(studio.flux), STORIES["sizes in turn"]
    assert_same(trace(graphs, studio, story), trace(studio.flux, studio, story))
    assert graphs.recorded == 2
    assert "refused" not in graphs.described()


@torch.inference_mode()
def test_a_capture_that_fails_leaves_everything_as_it_was(studio):
    def forward(latents, **given):
        if latents.shape[1] > 16:
            latents.sum().item()  # waits for the device, which nothing that is captured may
        return studio.flux(latents, **given)

    graphs, before = captured(forward), torch.cuda.current_stream(CUDA)
    story = [(0, "wide", {"width": 96}), (4, "a", {"person": 1}), (8, "wide", {"width": 96})]
    assert_same(trace(graphs, studio, story), trace(studio.flux, studio, story))
    assert torch.cuda.current_stream(CUDA) == before
    assert graphs.recorded == 1
    assert ", 1 refused (" in graphs.described()
    print(graphs.described())


# ---- full size ----


@pytest.fixture(scope="module")
def full_size():
    return random_engine(dataclasses.replace(FLUX_DEV, clip=MARKS), PROFILES["exact"], CUDA)


@pytest.fixture(scope="module", params=["diffusers", "fused"])
def engines(request, full_size):
    """Two over the same networks: one that captures every shape at once, and one that does not capture."""
    profile = dataclasses.replace(PROFILES["exact"], transformer_form=request.param)
    plain = PulidFluxEngine(full_size.parts, profile, CUDA)
    capturing = PulidFluxEngine(full_size.parts, dataclasses.replace(profile, captures=True), CUDA)
    assert capturing.info.details["captures"] == "CUDA graphs"
    capturing._forward = captured(capturing._flux)
    return capturing, plain


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def request(seed=1, **changes):
    return portrait(
        None, **{"id_images": (photo(seed),), "width": 512, "height": 512, "num_steps": 2, **changes}
    )


SIZES = [(512, 512), (896, 1152), (1152, 896), (1024, 1024), (768, 1024), (640, 640), (256, 256), (1536, 640),
         (832, 1216), (704, 704), (1344, 768), (960, 960)]  # fmt: skip


def test_memory_does_not_grow_over_many_sizes_and_requests(engines):
    capturing, _ = engines
    each_once(capturing)
    each_once(capturing)
    before = in_use()
    choose = random.Random(3)
    for number in range(100):
        width, height = choose.choice(SIZES)
        changes = {"true_cfg": 2.0} if width == 256 and number % 2 else {}
        job = request(number % PEOPLE, seed=number, width=width, height=height, **changes)
        results(capturing, {"job": job})
    each_once(capturing)  # the engine's table of rotary tables holds the same eight as before, then
    after = in_use()
    assert "refused" not in capturing._forward.described()
    capturing._forward.forget()
    freed = [(full - empty) // MIB for full, empty in zip(after, in_use(), strict=True)]
    print(json.dumps({"tensors_and_all_memory_of_the_graphs_mib": freed}))
    assert all(late - early <= 8 * MIB for early, late in zip(before, after, strict=True))


def each_once(engine):
    for number, (width, height) in enumerate(SIZES):
        results(engine, {"job": request(number % PEOPLE, width=width, height=height)})
    results(engine, {"job": request(width=256, height=256, true_cfg=2.0)})


def in_use():
    """Bytes of tensors, and bytes that are kept from other processes while nothing runs."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def test_photos_and_prompts_may_be_read_while_a_step_is_captured(engines):
    capturing, plain = engines
    capturing._forward.forget()
    sizes = [(w, h) for w, h in SIZES if w * h <= 1024 * 1024]
    with reading_all_the_time(capturing) as prepared:
        got = [picture(capturing, size) for size in sizes for _ in range(2)]
    expected = [picture(plain, size) for size in sizes for _ in range(2)]
    print(json.dumps({"prepared": len(prepared), "steps": capturing._forward.described()}))
    assert len(prepared) > 2
    assert "refused" not in capturing._forward.described()
    assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))


def picture(engine, size):
    return results(engine, {"job": request(width=size[0], height=size[1])})["job"].images[0]


@contextmanager
def reading_all_the_time(engine):
    """Another thread that prepares requests of which nothing is known; its errors come out at the end."""
    done, prepared, faults = threading.Event(), [], []

    def read():
        try:
            while not done.is_set():
                number = 1000 + len(prepared)
                prepared.append(engine.prepare(request(number, prompt=f"the prompt {number}")).timings)
        except BaseException as exc:  # told below, in the thread that waits
            faults.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield prepared
    finally:
        done.set()
        reader.join()
    assert not faults, faults
