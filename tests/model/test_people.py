"""Several photos and several people on the tiny profile: what is equal bit for bit, and what shows where."""

import numpy as np
import pytest
import torch

from model.portraits import difference, generate, photo, picture, portrait, results, within_one_level
from model.test_engine import engine_like
from pulid.engine import Box, FaceChoice, GenerationRequest, Mask, Person
from pulid.errors import BadRequest
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity
from pulid.identity.people import GroupIdentity, Identity, PlacedIdentity, fuse, like_nobody, steps_of

LEFT, RIGHT = Box(left=0, top=0, right=0.5, bottom=1), Box(left=0.5, top=0, right=1, bottom=1)
NAMES = ("collins", "obama", "ardern")


def with_people(*people, photos=NAMES, **changes):
    images = tuple(photo(name) for name in photos)
    return portrait(None, id_images=images, people=people, **changes)


def painted(engine, *people, **changes):
    return generate(engine, with_people(*people, **changes)).images[0]


# ---- several photos of one person ----


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_copies_of_one_photo_have_its_tokens_and_its_picture_bit_for_bit(engine, copies):
    one = engine.prepare(portrait("obama")).conditioning.people[0][1]
    request = portrait(id_images=(photo("obama"),) * copies)
    many = engine.prepare(request).conditioning.people[0][1]
    assert torch.equal(many.tokens, one.tokens)
    assert np.array_equal(generate(engine, request).images[0], picture(engine, "obama"))


def test_copies_have_the_tokens_of_one_in_bfloat16_too():
    tokens = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    fused = fuse([Identity(tokens, None)] * 3, "mean").tokens
    assert fused.dtype == torch.bfloat16
    assert torch.equal(fused, tokens)


def test_the_mean_of_two_people_is_between_them(engine):
    one, other = (engine.prepare(portrait(name)).conditioning.people[0][1] for name in NAMES[:2])
    images = (photo("collins"), photo("obama"))
    both = engine.prepare(portrait(id_images=images)).conditioning.people[0][1]
    torch.testing.assert_close(both.tokens, (one.tokens + other.tokens) / 2)
    blend = picture(engine, id_images=images)
    for name in NAMES[:2]:
        assert difference(blend, picture(engine, name)) >= 4
        assert difference(blend, picture(engine, name)) < difference(*(picture(engine, n) for n in NAMES[:2]))


def test_one_photo_side_by_side_is_the_plain_request(engine):
    assert np.array_equal(picture(engine, fusion="concat"), picture(engine))


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_copies_side_by_side_paint_what_one_paints(engine, true_cfg):
    """Attention to copies is attention to one of them, in both branches."""
    many = picture(engine, id_images=(photo("collins"),) * 3, fusion="concat", true_cfg=true_cfg)
    assert within_one_level(many, picture(engine, true_cfg=true_cfg))


def test_different_photos_side_by_side_are_neither_their_mean_nor_one_of_them(engine):
    images = (photo("collins"), photo("obama"))
    concat = picture(engine, id_images=images, fusion="concat")
    others = [picture(engine, id_images=images), *(picture(engine, name) for name in NAMES[:2])]
    assert min(difference(concat, other) for other in others) >= 1


def test_many_photos_side_by_side_are_not_folded_and_paint_the_same(engine):
    assert isinstance(engine._folded(torch.zeros(1, 128, 64), 1.0), FoldedIdentity)
    assert isinstance(engine._folded(torch.zeros(1, 136, 64), 1.0), ReferenceIdentity)
    folded, reference = (
        picture(engine, id_images=(photo("collins"), photo("obama")) * pairs, fusion="concat", true_cfg=2.0)
        for pairs in (8, 9)  # 128 and 144 tokens
    )
    assert within_one_level(folded, reference)


def test_nobody_takes_as_many_tokens_as_the_person():
    nobody = torch.arange(12.0).reshape(1, 4, 3)
    assert torch.equal(like_nobody(nobody, torch.zeros(1, 4, 3)), nobody)
    assert torch.equal(like_nobody(nobody, torch.zeros(1, 8, 3)), torch.cat([nobody, nobody], dim=1))


# ---- steps ----


@pytest.mark.parametrize(
    ("person", "steps"),
    [
        (Person(photos=(0,)), range(4)),
        (Person(photos=(0,), start_step=1, end_step=3), range(1, 3)),
        (Person(photos=(0,), end_step=9), range(4)),
        (Person(photos=(0,), end_step=0), range(0)),
        (Person(photos=(0,), start_step=3, end_step=2), range(0)),
        (Person(photos=(0,), start_step=4), range(0)),
        (Person(photos=(0,), weight=0), range(0)),
    ],
)
def test_the_steps_that_see_a_person(person, steps):
    assert list(steps_of(person, 4)) == list(steps)


def test_an_identity_ends_at_its_end_step(engine):
    nobody, always = picture(engine, None), picture(engine)
    ended = [picture(engine, id_end_step=step) for step in range(5)]
    assert np.array_equal(ended[0], nobody)
    assert np.array_equal(ended[4], always)
    influence = [difference(image, nobody) for image in ended]
    assert influence == sorted(influence)
    assert influence[1] >= 1
    assert difference(ended[3], always) >= 1


def test_a_start_and_an_end_are_what_the_two_runs_would_join_to(engine):
    """Seen in steps 1 and 2 of four: the latents follow the plain run, then the seen one, then the plain."""
    engine.admit("part", portrait(start_step=1, id_end_step=3))
    engine.admit("never", portrait(None))
    part, never = engine.flight("part"), engine.flight("never")
    engine.step(), engine.step()
    assert torch.equal(part.latents, never.latents)
    engine.step(), engine.step()
    assert not torch.equal(part.latents, never.latents)
    while engine.step():
        pass


# ---- several people ----


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_people_of_weight_0_are_plain_flux_bit_for_bit(engine, true_cfg):
    nobody = picture(engine, None, true_cfg=true_cfg)
    people = (
        Person(photos=(0,), weight=0, region=LEFT),
        Person(photos=(1, 2), weight=0, fusion="concat"),
        Person(photos=(2,), weight=0, region=Mask(np.full((4, 4), 99, np.uint8)), start_step=1),
    )
    assert np.array_equal(painted(engine, *people, true_cfg=true_cfg), nobody)


def test_where_a_region_is_nowhere_the_picture_is_plain_flux_bit_for_bit(engine):
    nowhere = Mask(np.zeros((9, 9), np.uint8))
    assert np.array_equal(painted(engine, Person(photos=(0,), region=nowhere)), picture(engine, None))


def test_the_whole_canvas_as_a_region_is_no_region_bit_for_bit(engine):
    everywhere = Box(left=0, top=0, right=1, bottom=1)
    person = Person(photos=(0,), region=everywhere)
    for true_cfg in (1.0, 2.0):
        assert np.array_equal(painted(engine, person, true_cfg=true_cfg), picture(engine, true_cfg=true_cfg))


def test_one_who_adds_nothing_leaves_the_other_as_they_are_alone(engine):
    alone = painted(engine, Person(photos=(1,), region=RIGHT))
    for silent in ({"weight": 0.0}, {"end_step": 0}, {"start_step": 4}):
        beside = painted(engine, Person(photos=(0,), **silent), Person(photos=(1,), region=RIGHT))
        assert np.array_equal(beside, alone)


def test_one_person_twice_at_half_the_weight_is_that_person_once(engine):
    halves = (Person(photos=(0,), weight=0.525), Person(photos=(0,), weight=0.525))
    assert within_one_level(painted(engine, *halves), picture(engine))


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_each_half_changes_most_with_the_photo_of_the_person_who_is_there(engine, true_cfg):
    """Self-attention carries a little of everyone everywhere, so only the sizes of changes are compared."""

    def halves(left, right):
        image = painted(
            engine,
            Person(photos=(NAMES.index(left),), region=LEFT),
            Person(photos=(NAMES.index(right),), region=RIGHT),
            true_cfg=true_cfg,
        )
        return image[:, :128], image[:, 128:]

    before = halves("collins", "obama")
    left_changed = [difference(*pair) for pair in zip(before, halves("ardern", "obama"), strict=True)]
    right_changed = [difference(*pair) for pair in zip(before, halves("collins", "ardern"), strict=True)]
    assert left_changed[0] > 8
    assert left_changed[0] > 2 * left_changed[1]
    assert right_changed[1] > 8
    assert right_changed[1] > 2 * right_changed[0]


def test_a_mask_puts_a_person_where_it_is_white(engine):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    nobody = picture(engine, None)
    above = painted(engine, Person(photos=(0,), region=Mask(mask)))
    assert difference(above[:128], nobody[:128]) > 3 * difference(above[128:], nobody[128:])


def test_the_order_of_people_does_not_matter(engine):
    people = (
        Person(photos=(0,), region=LEFT),
        Person(photos=(1,), weight=0.7, start_step=1),
        Person(photos=(2,), region=RIGHT, end_step=3),
    )
    assert within_one_level(painted(engine, *people), painted(engine, *reversed(people)))


def test_both_attention_forms_paint_the_same_people(engine):
    people = (Person(photos=(0, 2), fusion="concat", region=LEFT), Person(photos=(1,), start_step=1))
    reference = engine_like(engine, identity_attention="reference")
    for true_cfg in (1.0, 2.0):
        pictures = [painted(e, *people, true_cfg=true_cfg) for e in (engine, reference)]
        assert within_one_level(*pictures)


def test_people_in_flight_beside_others_get_the_bytes_they_get_alone(engine):
    requests = {
        "two": with_people(Person(photos=(0,), region=LEFT), Person(photos=(1,), region=RIGHT), true_cfg=2.0),
        "plain": portrait("obama", seed=5),
        "concat": portrait(id_images=(photo("obama"), photo("ardern")), fusion="concat", seed=6),
        "late": portrait("ardern", seed=7, start_step=2),
    }
    for one in (engine, engine_like(engine, shares_steps=True)):
        together = results(one, requests)
        for name in ("two", "concat"):
            alone = generate(engine, requests[name]).images[0]
            assert np.array_equal(together[name].images[0], alone), name
        for name in ("plain", "late"):
            assert within_one_level(together[name].images[0], generate(engine, requests[name]).images[0])


def test_where_steps_are_shared_plain_requests_still_share_and_people_never_do(engine):
    sharing = engine_like(engine, shares_steps=True)
    alone = {
        "two": with_people(Person(photos=(0,)), Person(photos=(1,))),
        "region": with_people(Person(photos=(0,), region=LEFT)),
        "concat": portrait(id_images=(photo("obama"), photo("ardern")), fusion="concat"),
    }
    mean = portrait(id_images=(photo("obama"), photo("ardern")))
    plain = {"a": portrait("obama"), "b": mean, "c": portrait(None)}
    for job_id, request in {**alone, **plain}.items():
        sharing.admit(job_id, request)
    groups = [[event.job_id for event in sharing.step()] for _ in range(4)]
    assert groups == [["two"], ["region"], ["concat"], ["a", "b", "c"]]


def test_several_pictures_of_several_people_are_those_of_consecutive_seeds(engine):
    people = (Person(photos=(0,), region=LEFT), Person(photos=(1,), region=RIGHT))
    for true_cfg in (1.0, 2.0):
        result = generate(engine, with_people(*people, seed=41, num_outputs=2, true_cfg=true_cfg))
        for seed, image in zip(result.seeds, result.images, strict=True):
            assert within_one_level(image, painted(engine, *people, seed=seed, true_cfg=true_cfg))


def test_a_group_that_is_silent_adds_exactly_nothing(engine):
    tokens = engine._encoder.unconditional()
    region = torch.rand(1, 16, 1, generator=torch.Generator().manual_seed(2))
    member = PlacedIdentity(engine._folded(tokens, 1.0), region, range(4))
    group = GroupIdentity((member, member))
    image = torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(3))
    assert group.residual(0, image).abs().max() > 0
    assert torch.equal(image + group.silent().residual(0, image), image)


# ---- which face, which photo ----


def two_faces():
    """Obama large at the left, Ardern smaller at the right."""
    canvas = np.full((500, 1000, 3), 128, np.uint8)
    for name, height, left in (("obama", 400, 40), ("ardern", 250, 600)):
        image = photo(name)
        step = image.shape[0] / height
        rows = (np.arange(height) * step).astype(int)
        columns = (np.arange(int(image.shape[1] / step)) * step).astype(int)
        canvas[50 : 50 + height, left : left + len(columns)] = image[rows][:, columns]
    return canvas


def test_the_picture_shows_the_face_that_was_chosen(engine):
    both = two_faces()
    first, second = (picture(engine, id_images=(both,), face=FaceChoice(index=i)) for i in range(2))
    from_right = picture(engine, id_images=(both,), face=FaceChoice(index=1, order="left-to-right"))
    assert np.array_equal(second, from_right)
    assert np.array_equal(first, picture(engine, id_images=(both,)))
    obama, ardern = picture(engine, "obama"), picture(engine, "ardern")
    assert difference(first, obama) < difference(first, ardern)
    assert difference(second, ardern) < difference(second, obama)


def test_two_people_may_come_from_one_photo(engine):
    people = [
        Person(photos=(0,), face=FaceChoice(index=i), region=region) for i, region in enumerate((LEFT, RIGHT))
    ]
    request = portrait(id_images=(two_faces(),), people=tuple(people))
    (_, one), (_, other) = engine.prepare(request).conditioning.people
    assert not torch.equal(one.tokens, other.tokens)


def test_a_read_face_is_kept_by_photo_and_choice(engine):
    fresh = two_faces()
    fresh[0, 0] = 7
    request = portrait(id_images=(fresh,))
    other = portrait(id_images=(fresh,), face=FaceChoice(index=1))
    assert engine.prepare(request).cache_hits["identity"] is False
    assert engine.prepare(request).cache_hits["identity"] is True
    assert engine.prepare(other).cache_hits["identity"] is False
    both = portrait(id_images=(fresh, photo("collins")), people=(Person(photos=(0,)), Person(photos=(1,))))
    engine.prepare(portrait())
    assert engine.prepare(both).cache_hits["identity"] is True
    assert "identity" not in engine.prepare(portrait(None)).cache_hits


@pytest.mark.parametrize(
    ("person", "says"),
    [
        (Person(), "either photos or an identity file"),
        (Person(photos=(0,), identity=b"x"), "either photos or an identity file"),
        (Person(photos=(0, 3)), "3 came with the request"),
        (Person(photos=(-1,)), "not there"),
    ],
)
def test_a_person_without_a_source_is_refused(engine, person, says):
    with pytest.raises(BadRequest, match=says):
        engine.prepare(with_people(Person(photos=(0,)), person))


def test_everyone_is_the_one_person_of_the_plain_fields_unless_people_are_named():
    image = np.zeros((4, 4, 3), np.uint8)
    assert GenerationRequest(prompt="", seed=0).everyone == ()
    fields = {"id_weight": 0.8, "start_step": 1, "id_end_step": 3, "fusion": "concat"}
    face = FaceChoice(index=1, order="central")
    plain = GenerationRequest(prompt="", seed=0, id_images=(image, image), face=face, **fields)
    assert plain.everyone == (
        Person(photos=(0, 1), fusion="concat", face=face, weight=0.8, start_step=1, end_step=3),
    )
    people = (Person(identity=b"x"),)
    assert GenerationRequest(prompt="", seed=0, people=people).everyone is people
