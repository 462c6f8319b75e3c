"""What the tiny profile promises: drawings that belong to their face and follow their prompt.

Each painted picture is compared with the drawings that the model was taught to make of real photos: the
renderer and the identity map of `training/`. How good the model is on many people and sizes is measured by
`python -m training.evaluate`; here it must be clearly better than chance, through the whole real path.
"""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from model.portraits import difference, photo, picture
from pulid.errors import WeightsMissing
from pulid.state_files import metadata_of
from pulid.tiny import FILE, tiny_engine
from training.drawing.avatar import STYLES, Scene
from training.drawing.renderer import render
from training.learning.lessons import held_out_people
from training.people.identity_map import avatar_of
from training.prompts import scene_of

PEOPLE = ("collins", "obama", "ardern")
PROMPT = "portrait, flat, studio"
LARGEST = 12_000_000  # bytes that the package may carry


@pytest.fixture(scope="module")
def embeddings(tiny):
    """Of the test photos, and of seventeen people who are on none."""
    known = [tiny.parts.faces.face_embeddings(photo(name))[0] for name in PEOPLE]
    return np.stack([*(face / np.linalg.norm(face) for face in known), *held_out_people(17)])


def thumbnail(image):
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX), np.float32)


def drawing(embedding, scene=None):
    return render(avatar_of(embedding), scene or Scene(), 256, 256)


def rank(painted, drawings):
    """Of the first drawing, by how near it is to the picture: 0 is the nearest."""
    distances = [np.square(thumbnail(painted) - thumbnail(drawn)).sum() for drawn in drawings]
    return int(np.argsort(distances).tolist().index(0))


def test_the_engine_says_what_its_pictures_are(tiny):
    assert "trained on drawings" in tiny.info.notice


def test_the_file_is_small_enough_for_the_package():
    assert FILE.stat().st_size <= LARGEST


def without_a_tensor(tensors, metadata):
    tensors.pop("transformer.proj_out.bias")


def without_its_words(tensors, metadata):
    metadata.pop("tokenizer")


@pytest.mark.parametrize(
    ("damage", "says"), [(without_a_tensor, "proj_out.bias"), (without_its_words, "tokenizer")]
)
def test_a_damaged_file_is_told_from_one_that_was_never_fetched(damage, says, tmp_path, monkeypatch):
    tensors, metadata = load_file(FILE), dict(metadata_of(FILE))
    damage(tensors, metadata)
    damaged = tmp_path / "tiny.safetensors"
    save_file(tensors, damaged, {**metadata, "format": "pt"})
    monkeypatch.setattr("pulid.tiny.FILE", damaged)
    with pytest.raises(WeightsMissing, match="Install the package again") as raised:
        tiny_engine()
    assert says in str(raised.value.__cause__)


@pytest.mark.parametrize("person", PEOPLE)
def test_a_person_s_picture_is_nearest_to_that_person_s_drawing(tiny, embeddings, person):
    """Among those of twenty people, of whom chance would find one in twenty."""
    own = PEOPLE.index(person)
    others = [index for index in range(len(embeddings)) if index != own]
    drawings = [drawing(embeddings[index]) for index in (own, *others)]
    assert rank(asked(tiny, person, PROMPT), drawings) == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_style_s_picture_is_nearest_to_the_drawing_in_that_style(tiny, embeddings, style):
    prompt = "portrait, {}, city"
    others = [other for other in STYLES if other != style]
    drawings = [drawing(embeddings[0], scene_of(prompt.format(name))) for name in (style, *others)]
    assert rank(asked(tiny, "collins", prompt.format(style)), drawings) == 0


def test_the_face_tells_more_the_more_it_weighs(tiny, embeddings):
    own = drawing(embeddings[0])
    away = [difference(asked(tiny, "collins", PROMPT, id_weight=weight), own) for weight in (0, 0.5, 1)]
    assert away[0] > away[1] > away[2]


def test_a_face_that_starts_late_leaves_more_of_the_faceless_picture(tiny):
    faceless = asked(tiny, "collins", PROMPT, id_weight=0)
    away = [difference(asked(tiny, "collins", PROMPT, start_step=step), faceless) for step in (0, 4)]
    assert away[1] < away[0] / 2


def test_a_negative_prompt_leads_away_from_what_it_names(tiny, embeddings):
    prompt = "portrait, comic, city"
    neon = drawing(embeddings[0], scene_of("portrait, neon, city"))
    away = [
        difference(asked(tiny, "collins", prompt, negative_prompt="neon", true_cfg=scale), neon)
        for scale in (1.0, 3.0)
    ]
    assert away[1] > away[0]


def test_without_a_setting_the_seed_decides(tiny):
    pictures = [asked(tiny, "collins", "portrait, flat", seed=seed) for seed in range(4)]
    assert max(difference(pictures[0], other) for other in pictures[1:]) >= 8


def asked(tiny, person, prompt, **changes):
    return picture(tiny, person, **{"prompt": prompt, "num_steps": 8, **changes})
