"""How alike two faces are, by the tiny profile's recogniser on real photos."""

import numpy as np
import pytest

from fakes import ScriptedEngine
from model.portraits import photo
from pulid.errors import NoFaceFound
from server.cli.doctor import MIN_LIKENESS
from server.engines import likeness

GREY = np.full((256, 256, 3), 128, np.uint8)


def test_a_face_is_like_itself_also_mirrored_and_half_as_large(engine):
    whole = photo("obama")
    assert likeness(engine, whole, whole) == pytest.approx(1, abs=1e-4)
    assert likeness(engine, whole, np.ascontiguousarray(whole[::2, ::-2])) > 0.8


@pytest.mark.parametrize("other", ["collins", "ardern"])
def test_strangers_are_far_below_what_the_doctor_asks_for(engine, other):
    assert likeness(engine, photo("obama"), photo(other)) < MIN_LIKENESS / 2


def test_a_picture_without_a_face_cannot_be_compared(engine):
    assert likeness(engine, photo("obama"), GREY) is None


def test_a_photo_without_a_face_is_the_callers_mistake(engine):
    with pytest.raises(NoFaceFound):
        likeness(engine, GREY, photo("obama"))


def test_only_an_engine_that_reads_faces_can_compare_them():
    with pytest.raises(TypeError, match="ScriptedEngine"):
        likeness(ScriptedEngine(), GREY, GREY)
