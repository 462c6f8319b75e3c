"""Which faces a photo shows, and how much a picture's face is like the one that was asked for."""

import numpy as np
import pytest
import safetensors.torch

from golden.chosen_faces import crowd
from model.portraits import generate, photo, portrait
from pulid.engine import Box, Person
from pulid.identity.face_weights import vectron_analysis
from pulid.identity.identity_file import metadata_of
from pulid.identity.likeness import mean_face, similarities, unit
from server.cli.doctor import MIN_LIKENESS

SAME_PERSON = 0.35  # cosine; of the tiny profile's recogniser
PEOPLE = ("collins", "obama", "ardern")


@pytest.fixture(scope="module")
def references(engine):
    return {name: reference_of(engine, (photo(name),)) for name in PEOPLE}


def reference_of(engine, photos, **changes):
    """The one reference face of a request that is not painted to its end."""
    engine.admit("job", portrait(id_images=photos, measures_similarity=True, num_steps=1, **changes))
    (event,) = engine.step()
    (face,) = event.denoised.reference_faces
    return face


# ---- faces ----


@pytest.fixture(scope="module")
def detected():
    """(box in pixels, score) of the six people, as the detector itself says."""
    picture = np.ascontiguousarray(crowd()[..., ::-1])
    rows, _ = vectron_analysis().det_model.detect(picture, input_size=(640, 640))
    return [(row[:4], row[4]) for row in rows]


def test_every_face_of_a_crowd_is_listed_largest_first(engine, detected):
    picture = crowd()
    height, width = picture.shape[:2]
    found = engine.faces(picture)
    assert len(found) == len(detected) == 6
    boxes = [
        (f.box.left * width, f.box.top * height, f.box.right * width, f.box.bottom * height) for f in found
    ]
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    assert areas == sorted(areas, reverse=True)
    by_place = sorted(zip(boxes, (face.score for face in found), strict=True))
    detected = sorted(detected, key=lambda face: face[0][0])
    for (box, score), (corners, expected) in zip(by_place, detected, strict=True):
        assert box == pytest.approx(corners.tolist(), abs=4)  # pixels; the photo is shrunk before
        assert score == pytest.approx(expected, abs=0.05)


def test_boxes_lie_within_the_photo_and_are_plain_numbers(engine):
    cut = photo("obama")[:, 130:]
    for face in (*engine.faces(cut), *engine.faces(crowd())):
        assert 0 <= face.box.left < face.box.right <= 1
        assert 0 <= face.box.top < face.box.bottom <= 1
        assert {type(x) for x in (face.box.left, face.box.bottom, face.score)} == {float}


@pytest.mark.parametrize("shape", [(300, 300), (8, 400), (1, 1)])
def test_a_photo_of_nobody_has_no_faces(engine, shape):
    assert engine.faces(np.full((*shape, 3), 128, np.uint8)) == ()


# ---- likeness ----


@pytest.mark.parametrize("name", PEOPLE)
def test_a_photo_is_like_itself_and_unlike_other_people(engine, references, name):
    alike = dict(zip(references, engine.likeness(photo(name), list(references.values())), strict=True))
    assert alike.pop(name) == pytest.approx(1, abs=1e-3)
    assert max(alike.values()) < SAME_PERSON


def test_a_mirrored_photo_is_still_like_the_person(engine, references):
    mirrored = np.ascontiguousarray(photo("obama")[:, ::-1])
    (alike,) = engine.likeness(mirrored, (references["obama"],))
    assert 0.8 < alike < 0.9999


def test_of_several_faces_the_most_alike_counts(engine, references):
    image = np.full((480, 960, 3), 128, np.uint8)
    for name, left in (("obama", 0), ("ardern", 480)):
        part = photo(name)[:480, :480]
        image[: part.shape[0], left : left + part.shape[1]] = part
    obama, ardern, collins = engine.likeness(image, [references[n] for n in ("obama", "ardern", "collins")])
    assert obama > 0.9
    assert ardern > 0.9
    assert collins < SAME_PERSON


def test_an_abstract_picture_is_like_nobody(engine, references):
    abstract = generate(engine, portrait("obama")).images[0]
    assert engine.likeness(abstract, list(references.values())) == (None, None, None)
    assert engine.likeness(np.zeros((4, 4, 3), np.uint8), (references["obama"],)) == (None,)
    assert engine.likeness(photo("obama"), ()) == ()


# ---- reference faces ----


@pytest.mark.parametrize("other", ["collins", "ardern"])
def test_strangers_are_far_below_what_the_doctor_asks_for(engine, references, other):
    (alike,) = engine.likeness(photo(other), (references["obama"],))
    assert alike < MIN_LIKENESS / 2


def test_reference_faces_come_only_when_they_are_asked_for(engine):
    assert generate(engine, portrait("obama", num_steps=1)).reference_faces == ()
    assert generate(engine, portrait(None, num_steps=1, measures_similarity=True)).reference_faces == ()


def test_a_reference_face_is_a_direction(engine, references):
    for face in references.values():
        assert (face.shape, face.dtype) == ((512,), np.float32)
        assert np.linalg.norm(face) == pytest.approx(1, abs=1e-5)


def test_there_is_one_for_each_person_in_their_order(engine, references):
    people = (
        Person(identity=engine.embed((photo("ardern"),))),
        Person(photos=(0,), weight=0),
        Person(photos=(1,), region=Box(left=0, top=0, right=0.5, bottom=1)),
    )
    images = (photo("collins"), photo("obama"))
    request = portrait(None, id_images=images, people=people, num_steps=1, measures_similarity=True)
    faces = generate(engine, request).reference_faces
    for face, name in zip(faces, ("ardern", "collins", "obama"), strict=True):
        np.testing.assert_allclose(face, references[name], atol=1e-6)


def test_several_photos_of_one_person_have_the_face_between_them(engine, references):
    mirrored = np.ascontiguousarray(photo("obama")[:, ::-1])
    for fusion in ("mean", "concat"):
        between = reference_of(engine, (photo("obama"), mirrored), fusion=fusion)
        for one in (photo("obama"), mirrored):
            (alike,) = engine.likeness(one, (between,))
            assert 0.9 < alike < 0.9999


def test_measuring_changes_no_picture(engine):
    plain, measured = (
        generate(engine, portrait("obama", measures_similarity=measured)) for measured in (False, True)
    )
    assert np.array_equal(plain.images[0], measured.images[0])


# ---- the arithmetic ----


def test_only_directions_count():
    found = np.array([[3, 4, 0], [0, 0, 9]], np.float32)
    references = [np.array(v, np.float32) for v in ([6, 8, 0], [0, 5, 0], [-1, 0, 0])]
    assert similarities(found, references) == pytest.approx((1, 0.8, 0), abs=1e-6)
    assert unit(found[0]).tolist() == pytest.approx([0.6, 0.8, 0])
    assert mean_face([]) is None
    between = mean_face([unit(face) for face in found])
    assert between.tolist() == pytest.approx([0.4243, 0.5657, 0.7071], abs=1e-4)


def test_a_person_whose_identity_file_has_no_face_keeps_their_place(engine, references):
    tensors = safetensors.torch.load(engine.embed((photo("ardern"),)))
    del tensors["face_embedding"]
    metadata = metadata_of(tensors, engine.info.details["identity_checkpoint"])
    without_face = safetensors.torch.save(tensors, metadata)
    people = (Person(identity=without_face), Person(photos=(0,)))
    request = portrait(
        None, id_images=(photo("obama"),), people=people, num_steps=1, measures_similarity=True
    )
    nobody, known = generate(engine, request).reference_faces
    assert nobody is None
    np.testing.assert_allclose(known, references["obama"], atol=1e-6)
    assert engine.likeness(photo("obama"), (nobody, known)) == (None, pytest.approx(1, abs=1e-3))
