"""The tiny engine with the fused transformer paints what it paints with diffusers' blocks."""

import numpy as np
import pytest

from model.portraits import generate, photo, portrait, results, within_one_level
from model.test_engine import DIFFERENT_REQUESTS, engine_like
from pulid.engine import Box, Mask, Person
from pulid.flux.fused import FusedFlux
from pulid.seeded import seeded_engine

LEFT, RIGHT = Box(left=0, top=0, right=0.5, bottom=1), Box(left=0.5, top=0, right=1, bottom=1)
SPOT = Mask(np.kron(np.eye(4, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8)))
PHOTOS = tuple(photo(name) for name in ("collins", "obama", "ardern"))


@pytest.fixture(scope="module")
def engine():
    return seeded_engine()


@pytest.fixture(scope="module")
def fused(engine):
    return engine_like(engine, transformer_form="fused")


@pytest.mark.parametrize("name", DIFFERENT_REQUESTS)
def test_a_request_has_the_picture_of_diffusers_blocks(engine, fused, name):
    for got, expected in zip(
        *(generate(e, DIFFERENT_REQUESTS[name]).images for e in (fused, engine)), strict=True
    ):
        assert got.std() > 1
        assert within_one_level(got, expected)


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
@pytest.mark.parametrize(
    "people",
    [
        (Person(photos=(0,), region=LEFT), Person(photos=(1,), region=RIGHT, start_step=1)),
        (Person(photos=(0, 2), fusion="concat"), Person(photos=(1,), region=SPOT, end_step=3)),
        (Person(photos=(0, 1, 2)),),
    ],
)
def test_people_have_the_picture_of_diffusers_blocks(engine, fused, people, true_cfg):
    request = portrait(None, id_images=PHOTOS, people=people, true_cfg=true_cfg, num_outputs=2)
    for got, expected in zip(*(generate(e, request).images for e in (fused, engine)), strict=True):
        assert within_one_level(got, expected)


def test_rows_of_different_requests_can_share_its_steps(engine):
    sharing = engine_like(engine, transformer_form="fused", shares_steps=True)
    together = results(sharing, DIFFERENT_REQUESTS)
    for name, request in DIFFERENT_REQUESTS.items():
        for got, expected in zip(together[name].images, generate(engine, request).images, strict=True):
            assert within_one_level(got, expected), name


def test_beside_others_a_request_gets_the_bytes_it_gets_alone(fused):
    together = results(fused, DIFFERENT_REQUESTS)
    for name in ("one", "guided"):
        (alone,) = generate(fused, DIFFERENT_REQUESTS[name]).images
        assert np.array_equal(together[name].images[0], alone)


def test_the_engine_says_which_kernels_it_runs(engine, fused):
    assert isinstance(fused._flux, FusedFlux)
    assert fused.info.details["kernels"] == "plain"
    assert "kernels" not in engine.info.details


def test_modulation_is_made_once_for_a_request(fused, monkeypatch):
    calls = []
    embed = fused._flux.transformer.time_text_embed.forward
    monkeypatch.setattr(
        fused._flux.transformer.time_text_embed,
        "forward",
        lambda timestep, *others: calls.append(len(timestep)) or embed(timestep, *others),
    )
    generate(fused, portrait(num_steps=6, true_cfg=2.0))
    assert calls == [6, 6]
