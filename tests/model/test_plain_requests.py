"""A request of one photo and one person paints what it painted before several of either were known.

`open/plain_pictures.safetensors` was recorded from the tiny profile at commit c876d8a, the last one
without them. One machine gives equal bytes; another CPU may round a level otherwise.
"""

import pytest

from golden import goldens
from model.portraits import photo, results, within_one_level
from pulid.engine import FaceChoice, GenerationRequest, Person

CASES = goldens.manifest("plain")


def request_of(case, **changes):
    photos = () if case["photo"] is None else (photo(case["photo"]),)
    return GenerationRequest(**{"id_images": photos, **case["request"], **changes})


def assert_recorded(case, result):
    assert list(result.seeds) == case["seeds"]
    assert [list(image.shape) for image in result.images] == case["shapes"]
    for image, key in zip(result.images, case["images"], strict=True):
        assert within_one_level(image, goldens.tensor_of(case["file"], key).numpy()), key


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_pictures_are_the_recorded_ones(engine, case):
    assert_recorded(case, results(engine, {"job": request_of(case)})["job"])


def test_they_are_the_recorded_ones_side_by_side_too(engine):
    done = results(engine, {case["id"]: request_of(case) for case in CASES[1:8]})
    for case in CASES[1:8]:
        assert_recorded(case, done[case["id"]])


@pytest.mark.parametrize("case", [case for case in CASES if case["photo"]], ids=goldens.case_id)
def test_one_person_named_as_such_is_the_plain_request(engine, case):
    plain = request_of(case)
    person = Person(photos=(0,), weight=plain.id_weight, start_step=plain.start_step)
    unread = {"id_weight": 3.0, "start_step": 1, "id_end_step": 0, "face": FaceChoice(index=7)}
    named = request_of(case, people=(person,), **unread)
    assert_recorded(case, results(engine, {"job": named})["job"])
