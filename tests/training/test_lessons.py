"""Lessons: the same for the same number, in the form in which the server meets faces and prompts."""

import numpy as np
import pytest

from training.learning.lessons import TEXT_LENGTH, Tokenizers, draw_lessons, held_out_people
from training.learning.words import tokenizer

PARTS = ("pictures", "faces", "t5_ids", "clip_ids")


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizers(tokenizer())


@pytest.fixture(scope="module")
def lessons(tokenizers):
    return draw_lessons(1000, 60, 64, 48, tokenizers)


def test_the_same_number_gives_the_same_lesson(lessons, tokenizers):
    again = draw_lessons(1000, 60, 64, 48, tokenizers)
    for part in PARTS:
        assert np.array_equal(getattr(again, part), getattr(lessons, part)), part


def test_another_number_gives_another_lesson(lessons, tokenizers):
    others = draw_lessons(2000, 60, 64, 48, tokenizers)
    for part in PARTS:
        assert not np.array_equal(getattr(others, part), getattr(lessons, part)), part


def test_faces_are_as_long_as_the_recogniser_makes_them(lessons):
    lengths = np.linalg.norm(lessons.faces, axis=1)
    assert 22 < lengths.mean() < 26


def test_pictures_and_texts_have_their_shapes(lessons):
    assert lessons.pictures.shape == (60, 48, 64, 3)
    assert lessons.t5_ids.shape == lessons.clip_ids.shape == (60, TEXT_LENGTH)


def test_nobody_who_is_held_out_is_in_a_lesson(lessons):
    unit = lessons.faces / np.linalg.norm(lessons.faces, axis=1, keepdims=True)
    assert (held_out_people(40) @ unit.T).max() < 0.4


def test_texts_are_filled_up_and_long_ones_are_cut_with_their_end(tokenizers):
    short, long = tokenizers.t5("portrait"), tokenizers.t5("portrait " * 100)
    assert len(short) == len(long) == TEXT_LENGTH
    assert short[2:] == [tokenizers.pad] * (TEXT_LENGTH - 2)
    assert long[-1] == tokenizers.end
    assert tokenizers.clip("portrait")[3:] == [tokenizers.end] * (TEXT_LENGTH - 3)
