"""Every input shows in the picture, and in the right measure: with random weights, which favour none."""

import io
from itertools import combinations
from pathlib import Path

import insightface
import numpy as np
import pytest
from PIL import Image

from model.portraits import difference, photo, picture
from pulid.identity.face_weights import vectron_analysis


def encoded(image, file_format, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format, **options)
    return np.array(Image.open(file).convert("RGB"))


def test_a_picture_is_not_flat(engine):
    assert picture(engine).std() >= 25


@pytest.mark.parametrize(
    "change",
    [
        {"person": "obama"},
        {"person": "ardern"},
        {"prompt": "a man at the beach, watercolour"},
        {"prompt": "portrait of man, neon color, cinematic"},
        {"seed": 720559},
    ],
    ids=lambda change: next(iter(change.values())),
)
def test_people_prompts_and_seeds_differ_by_eight_levels(engine, change):
    assert difference(picture(engine), picture(engine, **change)) >= 8


def faces_of_a_crowd():
    """Six strangers, each cut out with some margin: insightface's own sample picture."""
    path = Path(insightface.__file__).parent / "data/images/t1.jpg"
    crowd = np.array(Image.open(path).convert("RGB"))
    boxes, _ = vectron_analysis().det_model.detect(crowd[:, :, ::-1].copy(), input_size=(640, 640))
    for left, top, right, bottom in boxes[:, :4]:
        margin = 0.6 * max(right - left, bottom - top)
        x, y = int(max(0, left - margin)), int(max(0, top - margin))
        yield np.ascontiguousarray(crowd[y : int(bottom + margin), x : int(right + margin)])


def test_any_two_of_nine_strangers_differ_by_eight_levels(engine):
    photos = [*faces_of_a_crowd(), *(photo(name) for name in ("collins", "obama", "ardern"))]
    assert len(photos) == 9
    pictures = [picture(engine, id_images=(image,)) for image in photos]
    assert min(difference(*pair) for pair in combinations(pictures, 2)) >= 8


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {"quality": 85}), ("JPEG", {"quality": 95}), ("WEBP", {"quality": 90}), ("PNG", {})],
)
@pytest.mark.parametrize("person", ["collins", "obama", "ardern"])
def test_two_encodings_of_one_photo_differ_by_less_than_two_levels(engine, person, file_format, options):
    original = photo(person)
    again = encoded(original, file_format, **options)
    pictures = [picture(engine, id_images=(image,)) for image in (original, again)]
    assert difference(*pictures) < 2


def test_the_faces_influence_grows_with_id_weight_and_is_none_at_zero(engine):
    without = picture(engine, None)
    influence = [difference(without, picture(engine, id_weight=weight)) for weight in (0, 0.5, 1, 2)]
    assert influence[0] == 0
    assert influence == sorted(influence)
    assert influence[1] >= 4
    assert influence[3] >= influence[2] + 4


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": 2.0},
        {"num_steps": 5},
        {"start_step": 2},
        {"true_cfg": 2.0},
        {"max_sequence_length": 256},
        {"id_weight": 1.2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_other_parameter_shows(engine, change):
    assert difference(picture(engine), picture(engine, **change)) >= 1


def test_the_negative_prompt_shows_only_under_true_cfg(engine):
    def with_negative(negative_prompt, true_cfg):
        return picture(engine, negative_prompt=negative_prompt, true_cfg=true_cfg)

    assert np.array_equal(with_negative("bad quality", 1.0), with_negative("blue hat", 1.0))
    assert difference(with_negative("bad quality", 2.0), with_negative("blue hat", 2.0)) >= 4


def test_the_same_request_gives_the_same_bytes_again(engine):
    assert np.array_equal(picture(engine), picture(engine))
