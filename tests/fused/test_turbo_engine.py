"""The seeded engine where steps are skipped: whole requests, as the server sends them, and what is told."""

import gc
import weakref

import numpy as np
import pytest
import torch

from fused.test_fused_engine import LEFT, PHOTOS, RIGHT
from model.portraits import generate, portrait, results
from model.test_engine import DIFFERENT_REQUESTS, engine_like
from pulid.engine import Person
from pulid.flux.compiled import compiled_blocks, graphs_made, uncompiled_calls
from pulid.flux.step_cache import StepCache
from pulid.seeded import seeded_engine

WHATEVER = 100.0  # all steps of a random model are nearer
REQUESTS = {
    **DIFFERENT_REQUESTS,
    "people": portrait(
        None,
        seed=3,
        id_images=PHOTOS[:2],
        people=(Person(photos=(0,), region=LEFT), Person(photos=(1,), region=RIGHT, start_step=2)),
        true_cfg=2.0,
    ),
}


@pytest.fixture(scope="module")
def engine():
    return seeded_engine()


def skipping(engine, threshold=WHATEVER):
    return engine_like(engine, transformer_form="fused", skip_threshold=threshold)


@pytest.fixture(scope="module")
def turbo(engine):
    return skipping(engine)


def test_beside_and_after_others_a_request_gets_the_bytes_that_a_new_engine_gives_it(engine, turbo):
    together = results(turbo, REQUESTS)
    after = {name: generate(turbo, REQUESTS[name]) for name in ("guided", "people")}
    for name in ("two", "guided", "longer", "people"):
        alone = generate(skipping(engine), REQUESTS[name])
        for result in filter(None, (together[name], after.get(name))):
            assert result.skipped_steps == alone.skipped_steps > 0
            for got, expected in zip(result.images, alone.images, strict=True):
                assert np.array_equal(got, expected), name


def test_at_zero_the_bytes_are_those_of_the_profile_without_a_cache(engine):
    never, plain = skipping(engine, 0.0), engine_like(engine, transformer_form="fused")
    for name in ("guided", "people"):
        got, expected = (generate(one, REQUESTS[name]) for one in (never, plain))
        assert np.array_equal(got.images[0], expected.images[0])
        assert got.skipped_steps == expected.skipped_steps == 0
    assert (never.info.details["step_cache"], plain.info.details.get("step_cache")) == ("off", None)


def test_what_is_skipped_changes_the_picture_and_is_counted(engine, turbo):
    request = portrait(num_steps=6, true_cfg=2.0)
    skipped, whole = generate(turbo, request), generate(skipping(engine, 0.0), request)
    assert not np.array_equal(skipped.images[0], whole.images[0])
    assert skipped.skipped_steps == 2 * 3
    assert turbo.info.details["step_cache"] == "threshold 100, at most 3 steps in a row"


@pytest.mark.release
@pytest.mark.parametrize("num_outputs", [1, 2])
def test_whatever_the_branches_decide_the_graphs_of_the_warm_up_serve_it(engine, num_outputs):
    """By torch's tracer without its code generator."""
    torch.compiler.reset()
    compiled = engine_like(engine, transformer_form="fused", skip_threshold=WHATEVER, compiles=True)
    compiled.warm_up(compiled_blocks("eager"))
    before = graphs_made(), uncompiled_calls()
    request = portrait(num_steps=5, true_cfg=2.0, num_outputs=num_outputs, width=304)
    for stubborn in ("positive", "negative"):
        compiled.admit("job", request)
        getattr(compiled.flight("job"), stubborn).cache = StepCache(0.0)
        while events := compiled.step():
            denoised = events[-1].denoised
        assert denoised.skipped_steps == 3
    assert (graphs_made(), uncompiled_calls()) == before
    torch.compiler.reset()


@pytest.mark.parametrize("end", ["done", "cancelled"])
def test_a_request_that_has_ended_leaves_nothing_behind(turbo, end):
    turbo.admit("job", portrait(num_steps=3))
    turbo.step()
    last = turbo.flight("job").positive.cache.kept
    kept = [weakref.ref(tensor) for tensor in (last.by_first, last.by_others)]
    del last
    if end == "cancelled":
        turbo.cancel("job")
    else:
        turbo.step()
        turbo.step()
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
