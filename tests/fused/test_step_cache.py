"""Steps that are skipped: which ones, what is added in their place, and whose it is."""

import dataclasses
import itertools
import math
import weakref
from types import SimpleNamespace

import pytest
import torch

from fused.stories import STORIES, WIDE, Studio, assert_same, folded, smallest_model, trace
from fused.test_fp8 import SHORT, bound, error, fused_in, models
from golden import flux_models, goldens
from golden.test_flux import LOOPS
from pulid.flux import sampling
from pulid.flux.compiled import compiled_blocks
from pulid.flux.fused import PLAIN_BLOCKS, FusedFlux
from pulid.flux.step_cache import MAX_SKIPPED, FullStep, StepCache, Turn, carry_on, distance
from pulid.flux.transformer import DOUBLE_INTERVAL, SINGLE_INTERVAL
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity
from pulid.identity.people import PlacedIdentity, seen_together
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES

NEVER, SOME, ALWAYS = 0.0, 0.12, math.inf  # some: not the same ones in both branches

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


def with_caches(flight, threshold, negative=None):
    flight.positive.cache = StepCache(threshold)
    if flight.negative is not None:
        flight.negative.cache = StepCache(threshold if negative is None else negative)
    return flight


class Skipping(Studio):
    """Makes flights that skip steps."""

    threshold = SOME

    def flight(self, *args, **changes):
        return with_caches(super().flight(*args, **changes), self.threshold)


@pytest.fixture(scope="module")
def small():
    """The smallest model in its fused form; `rows` has how many each call of a single block was given."""
    flux, modules = smallest_model()
    rows = []

    def single(kernels, weights, joint, *others):
        rows.append(joint.shape[0])
        return PLAIN_BLOCKS.single(kernels, weights, joint, *others)

    fused = FusedFlux(flux.transformer, blocks=dataclasses.replace(PLAIN_BLOCKS, single=single))
    return SimpleNamespace(flux=fused, plain=flux, modules=modules, rows=rows, studio=Studio(fused, modules))


def walk(small, flight):
    """The latents after each step, and how many rows went through all blocks in it."""
    latents, computed, rotary = [], [], small.studio.rotary(flight)
    singles = len(small.flux.transformer.single_transformer_blocks)
    while not flight.is_done:
        small.rows.clear()
        denoise_step(small.flux, [flight], rotary)
        latents.append(flight.latents)
        computed.append(sum(small.rows) // singles)
    return latents, computed


def computed(small, negative=None, **changes):
    """How many rows go through all blocks, by step, where whatever may be skipped is."""
    return walk(small, with_caches(small.studio.flight("a", **changes), ALWAYS, negative))[1]


# ---- when ----


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 9, 10])
def test_first_and_last_are_whole_and_no_more_than_three_in_a_row_are_not(small, num_steps):
    whole = [step % (MAX_SKIPPED + 1) == 0 or step + 1 == num_steps for step in range(num_steps)]
    assert computed(small, person=0, num_steps=num_steps) == whole
    assert MAX_SKIPPED == 3


def test_a_step_at_which_an_identity_comes_or_goes_is_whole(small):
    assert computed(small, person=0, num_steps=8, start_step=2) == [1, 0, 1, 0, 0, 0, 1, 1]
    assert computed(small, person=0, num_steps=8, start_step=2, end_step=4) == [1, 0, 1, 0, 1, 0, 0, 1]


def test_a_step_at_which_another_person_comes_or_goes_is_whole(small):
    """Two people everywhere, each for some steps: the second takes over from the first at once."""
    flight = with_caches(small.studio.flight("a", num_steps=9), ALWAYS)
    flight.positive.people = tuple(
        PlacedIdentity(folded(small.modules, person), None, steps)
        for person, steps in enumerate((range(1, 3), range(3, 7), range(5, 9)))
    )
    assert walk(small, flight)[1] == [1, 1, 0, 1, 0, 1, 0, 1, 1]


def test_where_true_cfg_starts_the_negative_branch_is_whole_by_itself(small):
    changes = {"person": 0, "num_steps": 7, "true_cfg": 2.0, "timestep_to_start_cfg": 2}
    assert computed(small, **changes) == [1, 0, 1, 0, 1, 0, 2]
    assert computed(small, **changes, outputs=3) == [3, 0, 3, 0, 3, 0, 6]


def test_branches_decide_for_themselves(small):
    changes = {"person": 0, "num_steps": 4, "true_cfg": 2.0}
    assert computed(small, **changes) == [2, 0, 0, 2]
    assert computed(small, negative=NEVER, **changes) == [2, 1, 1, 2]


def test_the_distance_is_that_of_the_furthest_row():
    last = torch.tensor([[[2.0, -2.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    near = last + torch.tensor([[[0.2, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -2.0]]])
    assert distance(near, last) == pytest.approx(0.5)
    assert distance(near[:1], last[:1]) == pytest.approx(0.025)
    assert distance(last, torch.zeros_like(last)) == math.inf
    assert distance(torch.zeros_like(last), torch.zeros_like(last)).isnan()


@pytest.mark.parametrize("by_first", [torch.nan, math.inf])
def test_what_is_no_number_is_near_nothing(by_first):
    before = torch.zeros(1, 2, 3)
    cache = StepCache(ALWAYS)
    cache.kept = FullStep(before + 1, before + 5, ())
    turn = Turn(cache=cache, rows=1, identity=None, seen=(), is_last=False)
    image = torch.full((1, 2, 3), by_first)
    assert torch.equal(carry_on([turn], before, image, lambda rows, _: before + 7, None), before + 7)
    assert cache.skipped == 0


def test_the_host_waits_once_in_a_step_and_only_where_something_may_be_skipped(small, monkeypatch):
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(len(self)) or tolist(self))
    flight = with_caches(small.studio.flight("a", num_steps=5, true_cfg=2.0, person=0), NEVER)
    rotary, by_step = small.studio.rotary(flight), []
    while not flight.is_done:
        waits.clear()
        denoise_step(small.flux, [flight], rotary)
        by_step.append(list(waits))
    assert by_step == [[], [2], [2], [2], []]


# ---- what ----


def literal(small, flight, threshold):
    """docs/decisions/0018 written out with diffusers' own blocks, one branch after the other.

    The latents after each step, and how many rows went through all blocks.
    """
    flux, request = small.plain.transformer, flight.request
    rotary, x, kept = small.studio.rotary(flight), flight.latents, {}
    latents, computed = [], []

    def through(blocks, index, interval, first, text, image, condition, who):
        for number, block in list(enumerate(blocks))[first]:
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=condition, image_rotary_emb=rotary
            )
            if number % interval == 0:
                image = image if who is None else image + who.residual(index, image)
                index += 1
        return text, image

    for step, (t_now, t_next) in enumerate(itertools.pairwise(flight.times)):
        velocities, whole = [], 0
        for name in ("positive", "negative"):
            branch = getattr(flight, name)
            if branch is None or (name == "negative" and step < request.timestep_to_start_cfg):
                continue
            who = seen_together(branch.people, step)
            seen = [number for number, person in enumerate(branch.people) if step in person.steps]
            rows = x.shape[0]
            condition = flux.time_text_embed(
                torch.full((rows,), 1000 * t_now),
                torch.full((rows,), 1000 * request.guidance),
                branch.text.pooled.expand(rows, -1),
            )
            text = flux.context_embedder(branch.text.tokens.expand(rows, -1, -1))
            before = flux.x_embedder(x)
            doubles, singles = flux.transformer_blocks, flux.single_transformer_blocks
            text, image = through(doubles, 0, DOUBLE_INTERVAL, slice(1), text, before, condition, who)
            first, last = image - before, kept.get(name)
            is_near = last is not None and all(
                (now - then).abs().mean() / then.abs().mean() < threshold
                for now, then in zip(first, last["first"], strict=True)
            )
            if (
                is_near
                and step + 1 < request.num_steps
                and last["seen"] == seen
                and last["run"] < MAX_SKIPPED
            ):
                last["run"] += 1
                final = image + last["others"]
            else:
                behind = text, image, condition, who
                text, final = through(
                    doubles, 1, DOUBLE_INTERVAL, slice(1, None), *behind[:2], condition, who
                )
                index = -(-len(doubles) // DOUBLE_INTERVAL)
                text, final = through(
                    singles, index, SINGLE_INTERVAL, slice(None), text, final, condition, who
                )
                kept[name] = {"first": first, "others": final - image, "seen": seen, "run": 0}
                whole += rows
            velocities.append(flux.proj_out(flux.norm_out(final, condition)))
        velocity = velocities[0]
        if len(velocities) == 2:
            velocity = sampling.guide(*velocities, request.true_cfg)
        x = sampling.euler_step(x, velocity, t_now, t_next)
        latents.append(x)
        computed.append(whole)
    return latents, computed


WALKS = {
    "a person": {"person": 0},
    "who comes and goes": {"person": 0, "start_step": 3, "end_step": 7},
    "several pictures": {"person": 1, "outputs": 3, "seed": 5},
    "true CFG": {"person": 0, "true_cfg": 2.0},
    "true CFG from the middle on, several pictures": {
        "person": 0, "true_cfg": 3.0, "timestep_to_start_cfg": 2, "outputs": 2, "start_step": 1,
    },
    "nobody, in more steps": {"true_cfg": 2.0, "seed": 9, "num_steps": 20},
}  # fmt: skip


@pytest.mark.parametrize("threshold", [SOME, ALWAYS])
@pytest.mark.parametrize("name", WALKS)
def test_the_latents_are_those_of_the_definition_written_out(small, name, threshold):
    changes = {"num_steps": 10, **WALKS[name]}
    flight = with_caches(small.studio.flight("a", **changes), threshold)
    latents, computed = walk(small, flight)
    expected, whole = literal(small, small.studio.flight("a", **changes), threshold)
    assert computed == whole
    branches = 1 if flight.negative is None else 2
    assert 0 < sum(computed) < flight.request.num_steps * len(flight.seeds) * branches
    for got, wanted in zip(latents, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_with_some_threshold_the_branches_of_a_step_do_not_always_agree(small):
    flight = with_caches(small.studio.flight("a", person=0, true_cfg=2.0, num_steps=10), SOME)
    assert 1 in walk(small, flight)[1]


@pytest.mark.parametrize("form", [FoldedIdentity, ReferenceIdentity])
def test_a_skipped_step_adds_the_residuals_of_the_identity_too(small, form):
    """All identity attentions but the first lie behind the first block."""
    person, asked, added = folded(small.modules, 0, form), [], []

    def residual(index, image):
        asked.append(index)
        added.append(person.residual(index, image))
        return added[-1]

    def first_only(index, image):
        return person.residual(index, image) * (index == 0)

    def begun(of_person):
        """A flight after its first step, which was whole."""
        flight = with_caches(small.studio.flight("a", num_steps=3), ALWAYS)
        seen = SimpleNamespace(residual=of_person)
        flight.positive.people = (PlacedIdentity(seen, None, range(3)),)
        denoise_step(small.flux, [flight], small.studio.rotary(flight))
        return flight

    forgetful = begun(first_only).positive.cache.kept.by_others
    flight = begun(residual)
    assert asked == [0, 1, 2]
    of_identities = flight.positive.cache.kept.by_others - forgetful
    assert of_identities.norm() > 0.5 * sum(added[1:]).norm() > 0.01 * forgetful.norm()
    denoise_step(small.flux, [flight], small.studio.rotary(flight))
    assert asked == [0, 1, 2, 0], "the second step is skipped"


# ---- whose ----


@pytest.mark.parametrize("threshold", [SOME, ALWAYS])
@pytest.mark.parametrize("story", STORIES)
def test_requests_in_turn_get_the_latents_that_each_gets_alone(small, monkeypatch, story, threshold):
    monkeypatch.setattr(Skipping, "threshold", threshold)

    def told(requests):
        return trace(small.flux, Skipping(small.flux, small.modules), requests)

    together = told(STORIES[story])
    alone = [entry for _, job, changes in STORIES[story] for entry in told([(0, job, changes)])]
    by_job = sorted(together, key=lambda entry: entry[0])
    assert_same(by_job, sorted(alone, key=lambda entry: entry[0]))


def test_one_cancelled_and_begun_again_leaves_no_trace(small):
    studio = Skipping(small.flux, small.modules)
    story = [(0, "a", {"person": 0, "num_steps": 6}), (3, "b", {**WIDE, "person": 1, "num_steps": 6})]
    cancelled = trace(
        small.flux, studio, [*story, (6, "a", {"person": 0, "num_steps": 6})], cancels=[(5, "a")]
    )
    alone = trace(small.flux, studio, story[:1])
    assert_same([entry for entry in cancelled if entry[0] == "a"][-6:], alone)


def test_the_last_step_keeps_nothing(small):
    flight = with_caches(small.studio.flight("a", person=0, true_cfg=2.0, num_steps=3), ALWAYS)
    rotary = small.studio.rotary(flight)
    for step in range(3):
        denoise_step(small.flux, [flight], rotary)
        for branch in (flight.positive, flight.negative):
            assert (branch.cache.kept is None) is (step == 2)
    assert flight.skipped_steps == 2


def test_what_a_whole_step_replaces_is_free_while_its_blocks_run(small, monkeypatch):
    flight = with_caches(small.studio.flight("a", num_steps=4), NEVER)
    kept, alive = [], []
    through = FusedFlux._through_blocks

    def told(self, *args, **changes):
        alive.append(sum(ref() is not None for ref in kept))
        return through(self, *args, **changes)

    def told_of(*tensors):
        kept[:] = [weakref.ref(tensor) for tensor in tensors[:2]]
        return FullStep(*tensors)

    monkeypatch.setattr(FusedFlux, "_through_blocks", told)
    monkeypatch.setattr("pulid.flux.step_cache.FullStep", told_of)
    walk(small, flight)
    assert len(kept) == 2
    assert alive == [0] * 4


# ---- beside what it is built on ----


@pytest.mark.parametrize("story", STORIES)
def test_where_no_step_is_near_enough_the_bits_are_those_without_a_cache(small, monkeypatch, story):
    monkeypatch.setattr(Skipping, "threshold", NEVER)
    expected = trace(small.flux, small.studio, STORIES[story])
    assert_same(trace(small.flux, Skipping(small.flux, small.modules), STORIES[story]), expected)


@pytest.mark.release
def test_compiled_blocks_skip_the_same_steps(small):
    """By torch's tracer without its code generator."""
    plain = FusedFlux(small.plain.transformer)
    compiled = FusedFlux(small.plain.transformer, blocks=compiled_blocks("eager"))
    changes = {"person": 0, "true_cfg": 2.0, "num_steps": 6}
    skipped, latents = [], []
    for flux in (plain, compiled):
        flight = with_caches(Studio(flux, small.modules).flight("a", **changes), SOME)
        while not flight.is_done:
            denoise_step(flux, [flight], small.studio.rotary(flight))
        skipped.append(flight.skipped_steps)
        latents.append(flight.latents)
    assert skipped[0] == skipped[1] > 0
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-5, atol=1e-6)


def in_fp8_walked(case, threshold):
    """Latents of a recorded loop, and how many steps of it were skipped."""
    flux, modules = models(case["model"])
    fused = fused_in("fp8", flux)
    flight = flux_models.flight(modules, case, FoldedIdentity)
    if threshold is not None:
        with_caches(flight, threshold)
    tables = flux_models.rotary(fused, case)
    while not flight.is_done:
        denoise_step(fused, [flight], tables)
    return flight.latents, flight.skipped_steps


# Of the recorded models, whose steps are far apart (0.5 to 0.9): the largest that was seen, and a half more.
SKIPPED_AT_WILL = 0.6


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case["id"] == SHORT else [pytest.mark.release])
        for case in LOOPS
        if case["num_steps"] < 20
    ],
    ids=goldens.case_id,
)
def test_recorded_loops_hold_as_in_fp8_at_zero_and_within_a_bound_where_all_is_skipped(case):
    expected, allowed = bound(case["id"], "fp8")
    plain, _ = in_fp8_walked(case, None)
    at_zero, none = in_fp8_walked(case, NEVER)
    assert torch.equal(at_zero, plain)
    assert none == 0
    assert error(at_zero, expected) < allowed
    skipping, some = in_fp8_walked(case, ALWAYS)
    assert some > 0
    assert error(at_zero, expected) < error(skipping, expected) < SKIPPED_AT_WILL


# ---- the profile ----


@pytest.mark.parametrize(
    "changes",
    [
        {"transformer_form": "diffusers", "linears": "full"},
        {"captures": True},
        {"shares_steps": True},
        {"skip_threshold": -0.1},
    ],
    ids=str,
)
def test_a_profile_that_skips_steps_is_fused_and_neither_captures_nor_shares_them(changes):
    with pytest.raises(ValueError, match="skips steps, so its transformer_form must be fused"):
        dataclasses.replace(PROFILES["turbo"], **changes)


def test_turbo_is_fp8_that_skips_steps_and_no_other_profile_does():
    fp8, turbo = PROFILES["fp8"], PROFILES["turbo"]
    own = {"name", "promise", "device_memory", "skip_threshold"}
    fields = {field.name for field in dataclasses.fields(fp8)}
    assert {name for name in fields if getattr(fp8, name) != getattr(turbo, name)} == own
    assert [p.name for p in PROFILES.values() if p.skip_threshold is not None] == ["turbo"]
