"""Prompts mean scenes, in both directions."""

import re
from dataclasses import replace

import numpy as np
import pytest

from training.drawing.avatar import STYLES, Scene
from training.learning.words import tokenizer
from training.prompts import (
    HEADWEAR_WORDS,
    LIGHT_WORDS,
    SETTING_WORDS,
    SMILES,
    STYLE_WORDS,
    named_alone,
    sampled,
    scene_of,
    vocabulary,
    without,
)


@pytest.fixture(scope="module")
def samples():
    return [sampled(seed) for seed in range(500)]


def words_of(prompt):
    return re.findall(r"[a-z0-9]+", prompt)


def test_what_is_sampled_is_read_back_but_for_a_setting_left_unsaid(samples):
    for sample in samples:
        read = scene_of(sample.prompt)
        assert replace(read, setting=sample.scene.setting) == sample.scene, sample.prompt
        assert read.setting in (sample.scene.setting, Scene().setting), sample.prompt


def test_a_setting_is_mostly_said(samples):
    said = [scene_of(sample.prompt).setting == sample.scene.setting for sample in samples]
    assert 0.7 < np.mean(said) < 0.9


def test_every_word_of_a_prompt_is_in_the_vocabulary(samples):
    known = set(vocabulary())
    random = np.random.default_rng(0)
    for sample in samples:
        for prompt in (sample.prompt, sample.negative, named_alone(sample.scene, random)):
            assert set(words_of(prompt)) <= known, prompt


def test_every_word_of_the_vocabulary_is_one_token():
    words = [word for word in vocabulary() if word.isalpha()]  # 4k is two: a number and a letter
    assert {word: len(tokenizer().encode(word).ids) for word in words} == dict.fromkeys(words, 1)


def test_what_is_named_alone_takes_one_thing_of_the_scene_away(samples):
    random = np.random.default_rng(1)
    for sample in samples[:200]:
        named = without(sample.scene, named_alone(sample.scene, random))
        things = ("style", "setting", "headwear", "light")
        changed = [thing for thing in things if getattr(named, thing) != getattr(sample.scene, thing)]
        # What is named may already be as it is when nothing is said.
        assert len(changed) <= 1
        assert changed or Scene().style == sample.scene.style or Scene().setting == sample.scene.setting


def test_a_seed_always_gives_the_same_prompt_and_others_give_others():
    assert sampled(5) == sampled(5)
    assert len({sampled(seed).prompt for seed in range(100)}) > 90


@pytest.mark.parametrize(
    ("thing", "vocabulary"),
    [
        ("style", STYLE_WORDS),
        ("setting", SETTING_WORDS),
        ("headwear", HEADWEAR_WORDS),
        ("light", LIGHT_WORDS),
    ],
)
def test_every_phrase_means_its_value(thing, vocabulary):
    for value, phrases in vocabulary.items():
        for phrase in phrases:
            assert getattr(scene_of(f"portrait, {phrase}"), thing) == value, phrase


def test_every_smile_has_words():
    for smile, phrases in SMILES.items():
        for phrase in phrases:
            assert scene_of(f"a person, {phrase}").smile == smile, phrase


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("portrait, color, cinematic", Scene(light="cinematic")),
        ("portrait, neon color, cinematic", Scene(style="neon", light="cinematic")),
        ("portrait of woman, neon color, cinematic", Scene(style="neon", light="cinematic")),
        (
            "portrait of a wizard in the forest, cinematic",
            Scene(headwear="wizard", setting="forest", light="cinematic"),
        ),
        ("a knight in the snow", Scene(setting="snow")),
        ("watercolour portrait, soft colours, white paper", Scene(style="watercolour")),
        ("Astronaut in space, COMIC", Scene(headwear="helmet", setting="space", style="comic")),
        ("", Scene()),
        ("qwertz 123 ~ 肖像", Scene()),
    ],
)
def test_ordinary_prompts_are_understood(prompt, scene):
    assert scene_of(prompt) == scene


def test_what_is_excluded_is_not_drawn():
    assert scene_of("portrait at the beach without a hat") == Scene(setting="beach")


def test_a_negative_prompt_never_names_what_the_scene_has(samples):
    for sample in samples[:200]:
        assert without(sample.scene, sample.negative) == sample.scene


def test_a_negative_prompt_takes_its_word_away():
    assert without(Scene(style="comic", headwear="hat"), "hat, text") == Scene(style="comic")


def test_all_styles_are_sampled(samples):
    assert {sample.scene.style for sample in samples[:60]} == set(STYLES)
