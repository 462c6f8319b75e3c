"""Recorded steps have the bits of steps that are not recorded, whatever comes in whatever order.

On the CPU a recording computes again from its own tensors (`Rerun`). What can go wrong there is what can
go wrong with a CUDA graph: a recording of another shape, an input that was not copied, an answer that is
overwritten.
"""

import collections
import gc
import weakref

import numpy as np
import pytest
import torch

from fused.stories import STORIES, Studio, assert_same, folded, smallest_model, trace
from model.portraits import picture
from model.test_engine import engine_like
from pulid.flux import step_graph
from pulid.flux.fused import FusedFlux
from pulid.flux.step_graph import CapturedFlux, Kept, Recording, Rerun
from pulid.identity.attention import ReferenceIdentity
from pulid.identity.people import PlacedIdentity
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES
from pulid.seeded import seeded_engine


@pytest.fixture(scope="module")
def model():
    return smallest_model()


@pytest.fixture(scope="module")
def plain(model):
    return model[0]


@pytest.fixture(scope="module")
def modules(model):
    return model[1]


@pytest.fixture(scope="module")
def fused(plain):
    return FusedFlux(plain.transformer)


@pytest.fixture(params=["diffusers", "fused"])
def flux(request, plain, fused):
    return {"diffusers": plain, "fused": fused}[request.param]


@pytest.mark.parametrize("shares_steps", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("name", STORIES)
@torch.inference_mode()
def test_every_step_has_the_bits_that_it_has_unrecorded(flux, modules, name, shares_steps):
    studio = Studio(flux, modules)
    expected = trace(flux, studio, STORIES[name], shares_steps=shares_steps)
    captured = CapturedFlux(flux, Rerun(), recorded_after=0)
    for _ in range(2):
        got = trace(captured, studio, STORIES[name], shares_steps=shares_steps)
        assert_same(got, expected)
    assert captured.replays > len(expected) // 2
    assert "refused" not in captured.described()


@torch.inference_mode()
def test_a_request_that_is_cancelled_and_comes_again_is_as_if_it_never_left(flux, modules):
    studio = Studio(flux, modules)
    story = [(0, "a", {"person": 0}), (0, "b", {"person": 1}), (5, "a", {"person": 0})]
    cancels = [(3, "a")]
    captured = CapturedFlux(flux, Rerun(), recorded_after=0)
    got = trace(captured, studio, story, cancels=cancels)
    assert_same(got, trace(flux, studio, story, cancels=cancels))
    assert [step for job, step, _ in got if job == "a"] == [1, 2, 1, 2, 3, 4]


# ---- what would go wrong shows ----


def only_rotary_and_people(self, call):
    self._rotary.fill(call.rotary)
    if self._kept is not None:
        self._kept.fill(call.identity)


@pytest.mark.parametrize("stale", ["small inputs", "people", "rotary tables"])
@torch.inference_mode()
def test_a_recording_that_is_not_filled_anew_would_show(flux, modules, monkeypatch, stale):
    """After its first replay, which is held against the call itself."""
    studio = Studio(flux, modules)
    story = STORIES["sizes in turn" if stale == "rotary tables" else "two requests in turn"]
    fill, refill, fills = Recording._fill, Kept.fill, collections.Counter()

    def once(self, call):
        fills[self] += 1
        (fill if fills[self] <= 2 else only_rotary_and_people)(self, call)

    def never_again(self, source):
        if not self._source or (len(source) == 2) != (stale == "rotary tables"):
            refill(self, source)

    if stale == "small inputs":
        monkeypatch.setattr(Recording, "_fill", once)
    else:
        monkeypatch.setattr(Kept, "fill", never_again)
    captured = CapturedFlux(flux, Rerun(), recorded_after=0)
    got, expected = trace(captured, studio, story), trace(flux, studio, story)
    assert captured.replays > 0
    assert any(not torch.equal(one[2], other[2]) for one, other in zip(got, expected, strict=True))


@torch.inference_mode()
def test_an_answer_stays_when_the_next_one_is_made(plain, modules):
    studio = Studio(plain, modules)
    captured = CapturedFlux(plain, Rerun(), recorded_after=0)
    kept, values = [], []

    def keeping(*args, **kwargs):
        kept.append(captured(*args, **kwargs))
        values.append(kept[-1].clone())
        return kept[-1]

    trace(keeping, studio, STORIES["another guidance"])
    assert captured.replays == len(kept) - 1
    assert all(torch.equal(one, other) for one, other in zip(kept, values, strict=True))


# ---- tensors that never move ----


@torch.inference_mode()
def test_what_was_copied_last_is_not_copied_again():
    still, source = torch.zeros(4), torch.arange(4.0)
    kept = Kept([still])
    kept.fill([source])
    still.fill_(-1)  # seen only if nothing is copied
    kept.fill([source])
    assert still.tolist() == [-1] * 4
    kept.fill([source.clone()])
    assert still.tolist() == [0, 1, 2, 3]
    kept.fill([source])
    kept.fill([source.view(4)])
    assert still.tolist() == [0, 1, 2, 3]


@torch.inference_mode()
def test_a_new_tensor_at_the_place_of_a_freed_one_is_copied():
    still = torch.zeros(64)
    kept = Kept([still])
    places, ids = set(), set()
    for number in range(10_000):  # until an address and an id have come again
        source = torch.full((64,), float(number))
        places.add(source.data_ptr())
        ids.add(id(source))
        kept.fill([source])
        assert still[0] == number
        del source
        if len(places) <= number and len(ids) <= number:
            return
    pytest.fail("no memory was ever used again, so nothing was shown")


@torch.inference_mode()
def test_what_was_copied_is_not_kept_alive():
    source = torch.ones(4)
    gone = weakref.ref(source)
    kept = Kept([torch.zeros(4)])
    kept.fill([source])
    del source
    assert gone() is None


def test_a_write_to_what_was_copied_is_seen_where_torch_counts_writes():
    still, source = torch.zeros(4), torch.ones(4)
    kept = Kept([still])
    with torch.inference_mode():
        kept.fill([source])
        source.add_(1)
        kept.fill([source])
    assert still.tolist() == [2] * 4


@torch.inference_mode()
def test_a_copy_that_fails_counts_for_nothing():
    first, second = torch.zeros(4), torch.zeros(4)
    source = [torch.ones(4), torch.ones(4)]
    kept = Kept([first, second])
    kept.fill(source)
    with pytest.raises(RuntimeError):
        kept.fill([torch.full((4,), 2.0), torch.ones(5)])
    assert first.tolist() == [2] * 4
    kept.fill(source)
    assert first.tolist() == [1] * 4


@torch.inference_mode()
def test_pictures_of_all_sizes_share_one_copy_of_the_maps(flux, modules):
    captured = CapturedFlux(flux, Rerun(), recorded_after=0)
    trace(captured, Studio(flux, modules), STORIES["sizes in turn"])
    assert captured.recorded == 3
    assert len({recording._kept for recording in captured._recordings.values()}) == 1
    captured.forget()
    assert len(captured._identities) == 0


# ---- which shapes are recorded, and how many ----


@torch.inference_mode()
def test_the_recording_that_was_used_least_recently_goes_and_at_once(flux, modules, monkeypatch):
    """At once: a graph that a collector ends later may end while another is captured."""
    monkeypatch.setattr(step_graph, "RECORDINGS", 2)
    alive = weakref.WeakSet()

    class Watched(Recording):
        def __init__(self, *args):
            super().__init__(*args)
            alive.add(self)

    monkeypatch.setattr(step_graph, "Recording", Watched)
    studio, captured = Studio(flux, modules), CapturedFlux(flux, Rerun(), recorded_after=0)
    sizes = [
        (0, "a", {"num_steps": 3}),
        (1, "b", {"width": 96, "num_steps": 3}),
        (2, "c", {"width": 112, "num_steps": 3}),
    ]
    expected = trace(flux, studio, sizes)
    gc.disable()
    try:
        assert_same(trace(captured, studio, sizes), expected)
        assert len(alive) == captured.recorded == 2
    finally:
        gc.enable()


@torch.inference_mode()
def test_a_shape_is_recorded_only_when_it_has_come_up_often(plain, modules):
    studio, captured = Studio(plain, modules), CapturedFlux(plain, Rerun(), recorded_after=6)
    trace(captured, studio, [(0, "a", {"num_steps": 6}), (1, "once", {"width": 96, "num_steps": 5})])
    assert captured.recorded == 0
    trace(captured, studio, [(0, "a", {"num_steps": 4})])
    assert captured.recorded == 1
    assert captured.replays == 3


@torch.inference_mode()
def test_no_more_shapes_are_counted_than_said(plain, modules, monkeypatch):
    monkeypatch.setattr(step_graph, "COUNTED", 2)
    studio, captured = Studio(plain, modules), CapturedFlux(plain, Rerun(), recorded_after=1)
    sizes = [(0, str(width), {"width": width, "num_steps": 2}) for width in (32, 48, 64, 80)]
    trace(captured, studio, sizes)  # in turn: each is forgotten before it comes again
    assert captured.recorded == 0
    assert len(captured._calls) == 2


@pytest.mark.parametrize("kind", ["in a region", "two people", "in the reference's form", "too large"])
@torch.inference_mode()
def test_an_identity_that_is_no_single_fold_is_not_recorded(flux, modules, monkeypatch, kind):
    studio = Studio(flux, modules)

    def flight():
        row = studio.flight("a", person=0)
        (somebody,) = row.positive.people
        region = torch.linspace(0, 1, 16)[None, :, None]
        if kind == "in the reference's form":
            reference = folded(modules, 2, form=ReferenceIdentity)
            row.positive.people = (PlacedIdentity(reference, None, somebody.steps),)
        elif kind == "in a region":
            row.positive.people = (PlacedIdentity(somebody.prepared, region, somebody.steps),)
        elif kind == "two people":
            row.positive.people = (somebody, somebody)
        return row

    if kind == "too large":
        monkeypatch.setattr(step_graph, "IDENTITY_BYTES", 1000)
    one, other = flight(), flight()
    captured = CapturedFlux(flux, Rerun(), recorded_after=0)
    while not one.is_done:
        denoise_step(flux, [one], studio.rotary(one))
        denoise_step(captured, [other], studio.rotary(other))
        assert torch.equal(one.latents, other.latents)
    assert captured.recorded == captured.replays == 0


# ---- what cannot be recorded ----


class Broken(Rerun):
    """Fails, or computes something else, for the shapes with this many image tokens."""

    def __init__(self, fault=None, tokens=(16,)):
        self.fault, self.tokens = fault, tokens
        self.tries = self.made = 0

    def record(self, compute):
        output = compute()
        if output.shape[1] not in self.tokens:
            self.made += 1
            return super().record(compute)
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        return lambda: compute() * (1 + 2**-20)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, "it computed something else"),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), "RuntimeError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError"),
        (KeyError("a compiler's own"), "KeyError"),
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_shape_that_cannot_be_recorded_is_tried_once_and_called_directly(flux, modules, fault, said):
    studio, recorder = Studio(flux, modules), Broken(fault)
    story = [(0, "wide", {"width": 96}), (1, "a", {"num_steps": 6}), (8, "wide", {"width": 96})]
    captured = CapturedFlux(flux, recorder, recorded_after=0)
    assert_same(trace(captured, studio, story), trace(flux, studio, story))
    assert recorder.tries == 1
    assert captured.recorded == 1
    assert recorder.made == 2, "the other shape was dropped, and is there again"
    assert captured.described().endswith(f", 1 refused ({said})")


@torch.inference_mode()
def test_after_a_few_refusals_nothing_more_is_tried(plain, modules):
    studio, recorder = Studio(plain, modules), Broken(RuntimeError("never"), tokens=range(10_000))
    captured = CapturedFlux(plain, recorder, recorded_after=0)
    story = [(0, str(width), {"width": width}) for width in range(16, 160, 16)]
    assert_same(trace(captured, studio, story), trace(plain, studio, story))
    assert recorder.tries == step_graph.REFUSALS


@torch.inference_mode()
def test_recordings_make_room_for_a_call_that_wants_the_memory(plain, modules):
    studio = Studio(plain, modules)
    full = []

    def forward(latents, **given):
        if latents.shape[1] > 16 and not full:
            full.append(captured.recorded)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(latents, **given)

    captured = CapturedFlux(forward, Rerun(), recorded_after=0)
    story = [(0, "small", {}), (4, "large", {"width": 96})]
    assert_same(trace(captured, studio, story), trace(plain, studio, story))
    assert full == [1]
    assert captured.recorded == 1, "of the large one"


@torch.inference_mode()
def test_want_of_memory_that_recordings_cannot_help_is_said(plain, modules):
    def forward(*args, **given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    captured = CapturedFlux(forward, Rerun(), recorded_after=0)
    with pytest.raises(torch.OutOfMemoryError):
        trace(captured, Studio(plain, modules), [(0, "a", {})])


# ---- the engine ----


@pytest.fixture(scope="module")
def engine():
    return seeded_engine()


def test_an_engine_that_captures_paints_the_bytes_of_one_that_does_not(engine):
    with_recordings = engine_like(engine, captures=True, transformer_form="fused")
    without = engine_like(engine, transformer_form="fused")
    for changes in ({"num_steps": step_graph.RECORDED_AFTER + 2}, {"person": "obama", "seed": 3}):
        assert np.array_equal(picture(with_recordings, **changes), picture(without, **changes))
    assert with_recordings._forward.described() == "computed again: 1 recorded, 5 replays"
    assert with_recordings.info.details["captures"] == "computed again"
    assert "captures" not in without.info.details


def test_no_profile_captures_yet():
    assert not any(profile.captures for profile in PROFILES.values())
