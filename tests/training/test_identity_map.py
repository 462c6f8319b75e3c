"""The map from a face to an avatar, and the people it is trained on."""

import numpy as np
import pytest

from training.drawing.avatar import TRAITS, Scene
from training.people.choose_directions import LABELS, SALIENT
from training.people.identity_map import avatar_of, directions, traits
from training.people.measure_identity import ceiling
from training.people.population import covariance, people, raw, two_photos


@pytest.fixture(scope="module")
def crowd():
    return people(3000, np.random.default_rng(0))


def test_traits_are_spread_evenly_over_people(crowd):
    for values in traits(crowd).T:
        assert np.abs(np.quantile(values, (0.1, 0.5, 0.9)) - (-0.8, 0.0, 0.8)).max() < 0.08


def test_traits_do_not_tell_of_each_other(crowd):
    together = np.corrcoef(traits(crowd).T) - np.eye(len(TRAITS))
    assert np.abs(together).max() < 0.08


def test_the_length_of_an_embedding_does_not_matter(crowd):
    assert avatar_of(crowd[0]) == avatar_of(crowd[0] * np.float32(16))


def test_two_photos_are_as_alike_as_asked():
    for cosine in (0.9, 0.65):
        one, other = two_photos(400, cosine, np.random.default_rng(1))
        assert (one * other).sum(1).mean() == pytest.approx(cosine, abs=0.02)


def test_strangers_are_not_alike(crowd):
    assert np.abs(crowd[:300] @ crowd[300:600].T).max() < 0.4


def test_raw_embeddings_are_as_long_as_the_recognisers(crowd):
    lengths = np.linalg.norm(raw(crowd[:500], np.random.default_rng(2)), axis=1)
    assert 22 < lengths.mean() < 26
    assert lengths.min() >= 14.9


def test_the_covariance_is_of_vectors_of_length_one():
    assert np.trace(covariance()) == pytest.approx(1.0)


def test_every_trait_has_a_direction_and_a_place():
    assert directions().shape == (len(TRAITS), 512)
    assert sorted(SALIENT) == sorted(TRAITS)
    assert set(LABELS) <= set(TRAITS)


def test_a_perfect_painter_finds_the_same_embedding_always_and_a_second_photo_often():
    assert ceiling(traits, Scene(), 1.0, 1) == 1.0
    assert ceiling(traits, Scene(), 0.9, 2) > 0.7
