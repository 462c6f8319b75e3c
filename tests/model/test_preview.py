"""Previews: for watched jobs only, small, and nearer to the picture from step to step."""

import io

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from model.portraits import generate, portrait
from pulid.flux import latents
from pulid.flux.preview import FLUX_RGB_FACTORS, MAX_EDGE, LatentPreview, fitted_projection
from pulid.parts import FLUX_DEV, build_networks


def watched(engine, request, job_id="job"):
    """Events of a request that is watched from its start."""
    engine.watch(job_id, True)
    return events_of(engine, request, job_id)


def events_of(engine, request, job_id="job"):
    engine.admit(job_id, request)
    events = []
    while step := engine.step():
        events.extend(step)
    return events


def opened(jpeg):
    picture = Image.open(io.BytesIO(jpeg))
    assert picture.format == "JPEG"
    return np.array(picture).astype(int)


def test_every_step_but_the_last_of_a_watched_job_brings_a_small_jpeg(engine):
    events = watched(engine, portrait(width=256, height=320))
    assert [event.preview is None for event in events] == [False, False, False, True]
    for event in events[:-1]:
        assert opened(event.preview).shape == (40, 32, 3)
        assert len(event.preview) < 16_000


def test_the_long_edge_is_bounded(engine):
    engine.watch("large", True)
    engine.admit("large", portrait(None, width=2560, height=256, num_steps=2))
    (event,) = engine.step()
    engine.cancel("large")
    assert opened(event.preview).shape == (26, MAX_EDGE, 3)


def test_nobody_who_does_not_watch_gets_one_and_nothing_is_kept_for_it(engine):
    engine.admit("job", portrait())
    flight = engine.flight("job")
    (event,) = engine.step()
    assert event.preview is None
    assert flight.predicted_latents is None
    engine.cancel("job")


def test_watching_changes_no_picture(engine):
    for changes in ({}, {"true_cfg": 2.0}):
        last = watched(engine, portrait(**changes))[-1]
        image = engine.decode(last.denoised).images[0]
        assert np.array_equal(image, generate(engine, portrait(**changes)).images[0])


def test_watching_may_begin_and_end_between_two_steps(engine):
    engine.admit("job", portrait(num_steps=6))
    seen = []
    for on in (None, True, None, False, None):
        if on is not None:
            engine.watch("job", on)
        seen.append(engine.step()[0].preview is not None)
    assert seen == [False, True, True, False, False]
    engine.cancel("job")


@pytest.mark.parametrize("end", ["done", "cancelled"])
def test_a_job_that_has_ended_is_no_longer_watched(engine, end):
    engine.watch("job", True)
    engine.admit("job", portrait(num_steps=1 if end == "done" else 4))
    engine.step()
    engine.cancel("job")
    assert all(event.preview is None for event in events_of(engine, portrait()))


@torch.inference_mode()
def test_the_prediction_is_where_the_steps_velocity_leads_and_the_end_at_the_last_step(engine):
    engine.watch("job", True)
    engine.admit("job", portrait(num_steps=8, true_cfg=2.0))
    flight = engine.flight("job")
    before, predicted = flight.latents, []
    while engine.step():
        now, after = flight.times[flight.step - 1 : flight.step + 1]
        velocity = (flight.latents - before) / (after - now)
        torch.testing.assert_close(flight.predicted_latents, before - now * velocity, atol=1e-4, rtol=1e-4)
        before = flight.latents
        predicted.append(flight.predicted_latents)
    distances = [float((prediction - flight.latents).norm()) for prediction in predicted]
    assert distances[0] > 2 * distances[5] > 4 * distances[7] == 0


def test_a_preview_shows_the_colours_of_the_picture_and_more_and_more(engine):
    events = watched(engine, portrait(seed=5, num_steps=8))
    image = engine.decode(events[-1].denoised).images[0].reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    alike = [likeness(opened(event.preview), image) for event in events[:-1]]
    stranger = likeness(opened(watched(engine, portrait(seed=6))[-2].preview), image)
    assert alike[-1] > 0.6
    assert alike[-1] > alike[0] + 0.005
    assert abs(stranger) < 0.2


def likeness(one, other):
    """Correlation of what is left of two pictures without their mean colours."""
    one, other = (picture - picture.mean(axis=(0, 1)) for picture in (one, other))
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def test_of_several_pictures_the_first_is_shown(engine):
    one, several = (watched(engine, portrait(num_outputs=count))[0].preview for count in (1, 3))
    assert np.abs(opened(one) - opened(several)).max() <= 2


def test_the_fit_is_the_same_every_time(engine):
    for one, other in zip(*(fitted_projection(engine._autoencoder) for _ in range(2)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_linear_decoder_is_fitted_exactly():
    """A decoder that is linear by nature, of eight channels, and shifts everything by one cell."""
    vae = AutoencoderKL(latent_channels=8, scaling_factor=0.5, shift_factor=0.0)
    matrix = torch.randn(8, 3, generator=torch.Generator().manual_seed(4)) / 80

    def decode(z, return_dict):
        shifted = torch.nn.functional.pad(z, (1, 0))[..., :-1]
        colours = torch.einsum("bchw,cr->brhw", shifted, matrix) + 0.1
        return (colours.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3),)

    vae.decode = decode
    kernel, offset = fitted_projection(vae)
    expected = torch.zeros(3, 8, 3, 3)
    expected[:, :, 1, 0] = matrix.T / 0.5
    torch.testing.assert_close(kernel, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(offset, torch.full((3,), 0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channel", [0, 6, 13, 15])
def test_fluxs_own_autoencoder_has_the_published_factors(flux_preview, channel):
    cells = torch.zeros(1, 16, 4, 4)
    cells[0, channel] = 4.0
    picture = opened(flux_preview.jpeg(latents.pack(cells), 32, 32))
    expected = 127.5 * (1 + 4 * np.array(FLUX_RGB_FACTORS[channel]))
    assert np.abs(picture - expected).max() < 4  # levels; JPEG's


@pytest.fixture(scope="module")
def flux_preview():
    return LatentPreview(build_networks(FLUX_DEV).autoencoder.to_empty(device="cpu"))
