"""Drawings: the same for the same numbers, moved by every number, at every size."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from training.drawing.avatar import HEADWEAR, LIGHTS, SETTINGS, STYLES, TRAITS, Avatar, Scene
from training.drawing.renderer import render

SOMEBODY = Avatar(beard=0.6, glasses=0.6, age=0.6)


def test_the_same_numbers_give_the_same_bits():
    assert np.array_equal(render(SOMEBODY, Scene(style="sketch")), render(SOMEBODY, Scene(style="sketch")))


@pytest.mark.parametrize("style", STYLES)
def test_every_trait_moves_every_style(style):
    before = render(SOMEBODY, Scene(style=style), 128, 128).astype(int)
    for trait in TRAITS:
        after = render(replace(SOMEBODY, **{trait: 1.0}), Scene(style=style), 128, 128)
        assert np.abs(after - before).max() > 8, trait


@pytest.mark.parametrize("trait", TRAITS)
def test_no_trait_jumps(trait):
    """A twentieth of a trait's range never changes the picture much, wherever it is."""
    people = (replace(Avatar(), **{trait: float(value)}) for value in np.linspace(-1, 1, 21))
    pictures = [render(person, Scene(), 64, 64).astype(float) for person in people]
    steps = [np.abs(one - two).mean() for one, two in pairwise(pictures)]
    assert max(steps) < 3


@pytest.mark.parametrize(
    ("thing", "values"), [("style", STYLES), ("setting", SETTINGS), ("headwear", HEADWEAR), ("light", LIGHTS)]
)
def test_every_word_of_a_scene_shows(thing, values):
    pictures = [
        render(SOMEBODY, replace(Scene(), **{thing: value}), 96, 96).astype(float) for value in values
    ]
    apart = [np.abs(one - two).mean() for i, one in enumerate(pictures) for two in pictures[:i]]
    assert min(apart) > 3


def test_a_smile_shows():
    stern, happy = (render(SOMEBODY, Scene(smile=smile)).astype(float) for smile in (0.0, 1.0))
    assert np.abs(stern - happy).max() > 60


@pytest.mark.parametrize("size", [(256, 256), (256, 512), (640, 256), (512, 640), (1024, 1024), (272, 400)])
def test_every_size_is_drawn_in_every_style(size):
    for style in STYLES:
        picture = render(SOMEBODY, Scene(style=style, setting="city"), *size)
        assert picture.shape == (size[1], size[0], 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 15


def test_sizes_agree_on_what_is_in_the_middle():
    small, large = render(SOMEBODY, Scene(), 256, 256), render(SOMEBODY, Scene(), 512, 512)
    halved = large.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 3


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        Scene(style="baroque")
