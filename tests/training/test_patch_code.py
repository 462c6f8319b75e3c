"""The patch code: 16 numbers for 8 x 8 pixels, there and back."""

import numpy as np
import pytest
import torch

from training.drawing.avatar import SETTINGS, STYLES, Avatar, Scene
from training.drawing.renderer import render
from training.learning.patch_code import CHANNELS, PatchCode, as_tensor


@pytest.fixture(scope="module")
def drawings():
    people = (Avatar(skin_tone=tone, clothes_red=tone) for tone in (-0.9, -0.4, 0.1, 0.5, 0.9))
    scenes = (Scene(style=style, setting=place) for style, place in zip(STYLES, SETTINGS[:5], strict=True))
    return [np.array(render(person, scene, 96, 128)) for person, scene in zip(people, scenes, strict=True)]


@pytest.fixture(scope="module")
def code(drawings):
    return PatchCode.fitted(drawings)


@pytest.fixture(scope="module")
def pictures(drawings):
    return as_tensor(np.stack(drawings))


def test_latents_have_16_channels_for_each_patch(code, pictures):
    assert code.encode(pictures).shape == (5, CHANNELS, 16, 12)


def test_latents_come_back_as_they_were(code, pictures):
    latents = code.encode(pictures)
    assert torch.allclose(code.encode(code.decode(latents)), latents, atol=1e-3)


def test_no_other_latents_give_a_nearer_picture(code, pictures):
    latents = code.encode(pictures)
    error = (code.decode(latents) - pictures).square().mean()
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        moved = latents + size * torch.randn(latents.shape, generator=generator)
        assert (code.decode(moved) - pictures).square().mean() > error


def test_drawings_it_was_fitted_to_are_kept_well(code, pictures):
    error = (code.decode(code.encode(pictures)) - pictures).square().mean()
    assert 10 * torch.log10(4 / error) > 22  # dB


def test_latents_vary_by_one_on_average(code, pictures):
    variances = code.encode(pictures).var((0, 2, 3))
    assert variances.mean() == pytest.approx(1.0, abs=0.05)
    assert variances[0] > variances[-1]


def test_contrast_is_distance_to_gray(code, pictures):
    gray = code.gray[:, None, None]
    latents = code.encode(pictures)
    for contrast in (0.5, 1.3):
        expected = gray + contrast * (latents - gray)
        assert torch.allclose(code.encode(contrast * pictures), expected, atol=1e-4)


def test_gray_is_the_code_of_a_gray_picture(code):
    latents = code.encode(torch.zeros(1, 3, 8, 8))
    assert torch.allclose(latents.flatten(), code.gray, atol=1e-5)


def test_what_is_saved_is_loaded(code, pictures, tmp_path):
    code.save(tmp_path / "code.npz")
    assert torch.equal(PatchCode.load(tmp_path / "code.npz").encode(pictures), code.encode(pictures))
