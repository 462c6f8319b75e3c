"""Python use without the server: diffusers' manner, the server's pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import pulid
from model.portraits import PHOTOS, difference, generate, photo, portrait
from pulid.engine import Box, FaceChoice, Person
from pulid.errors import BadRequest, NoFaceFound, UnknownProfile, WeightsMissing
from pulid.library import FluxPulidPipeline, as_rgb

ROOT = Path(__file__).parents[2]
SMALL = {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 720558}
PROMPT = "portrait of woman, neon color, cinematic"


@pytest.fixture
def pipe(engine):
    return FluxPulidPipeline(engine)


def pil(name):
    return Image.open(PHOTOS / f"{name}.jpg")


def test_the_example_paints_a_picture_on_the_tiny_profile(tmp_path):
    out = tmp_path / "portrait.png"
    command = [sys.executable, "examples/portrait.py", PHOTOS / "obama.jpg", PHOTOS / "obama.jpg", out]
    options = ["--size", "128", "--steps", "3", "--seed", "5"]
    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "step 1, timestep 1000"
    assert len(done.stdout.splitlines()) == 4
    assert "trained on drawings" in done.stdout
    with Image.open(out) as picture:
        assert picture.size == (128, 128)


def test_the_package_offers_it_without_loading_torch_first():
    code = "import sys, pulid; print('torch' in sys.modules, *pulid.__all__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False FluxPulidPipeline\n"), done.stderr
    assert pulid.FluxPulidPipeline is FluxPulidPipeline
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pulid.Nothing  # noqa: B018


def test_a_picture_is_the_engines(pipe, engine):
    changes = {"true_cfg": 2.0, "start_step": 1, "guidance": 2.0, "num_outputs": 2}
    expected = generate(engine, portrait("obama", timestep_to_start_cfg=1, **changes))
    named = {"true_cfg_scale": 2.0, "start_step": 1, "guidance_scale": 2.0, "num_images_per_prompt": 2}
    got = pipe(PROMPT, pil("obama"), **named, **SMALL)
    assert got.seeds == [720558, 720559]
    for picture, image in zip(got.images, expected.images, strict=True):
        assert isinstance(picture, Image.Image)
        assert np.array_equal(np.array(picture), image)


def test_several_photos_people_and_none(pipe, engine):
    two = [pil("obama"), pil("ardern")]
    photos = (photo("obama"), photo("ardern"))
    left = Person(photos=(1,), region=Box(left=0, top=0, right=0.5, bottom=1))
    for given, changes in (
        ({"id_image": two, "fusion": "concat", "id_end_step": 3}, {"fusion": "concat", "id_end_step": 3}),
        ({"id_image": two, "people": [left]}, {"people": (left,)}),
        ({"id_image": two, "face": FaceChoice(order="central")}, {"face": FaceChoice(order="central")}),
    ):
        (got,) = pipe(PROMPT, **given, **SMALL).images
        expected = generate(engine, portrait(None, id_images=photos, **changes)).images[0]
        assert np.array_equal(np.array(got), expected)
    (nobody,) = pipe(PROMPT, **SMALL).images
    assert np.array_equal(np.array(nobody), generate(engine, portrait(None)).images[0])


def test_the_callback_hears_every_step_with_its_latents(pipe):
    heard = []

    def callback(given, step, timestep, state):
        heard.append((given is pipe, step, timestep, state["latents"].shape))

    pipe(PROMPT, callback_on_step_end=callback, **SMALL)
    assert [(ours, step) for ours, step, *_ in heard] == [(True, step) for step in range(4)]
    timesteps = [timestep for *_, timestep, _ in heard]
    assert timesteps[0] == 1000
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[-1] > 0
    assert {shape for *_, shape in heard} == {(1, 256, 64)}


@pytest.mark.parametrize("at", [0, 3])
def test_the_callback_may_change_the_latents_the_last_ones_too(pipe, engine, at):
    def callback(pipe, step, timestep, state):
        return {"latents": torch.zeros_like(state["latents"])} if step == at else None

    (got,) = pipe(PROMPT, callback_on_step_end=callback, **SMALL).images
    (plain,) = pipe(PROMPT, **SMALL).images
    assert difference(np.array(got), np.array(plain)) > 8
    if at == 3:
        (empty,) = engine._decoder.pictures(torch.zeros(1, 256, 64), 256, 256)
        assert np.array_equal(np.array(got), empty)


def test_a_callback_that_raises_ends_the_run_and_leaves_nothing_in_flight(pipe, engine):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, callback_on_step_end=stop, **SMALL)
    assert engine.step() == []
    assert len(pipe(PROMPT, **SMALL).images) == 1


def test_a_generators_seed_is_the_seed(pipe):
    plain = pipe(PROMPT, **SMALL).images[0]
    generator = torch.Generator().manual_seed(720558)
    torch.rand(3, generator=generator)
    again = pipe(PROMPT, **SMALL | {"seed": None}, generator=generator)
    assert again.seeds == [720558]
    assert np.array_equal(np.array(again.images[0]), np.array(plain))
    with pytest.raises(BadRequest, match="either a seed or a generator"):
        pipe(PROMPT, generator=generator, **SMALL)


def test_without_a_seed_each_call_draws_one(pipe):
    seeds = {pipe(PROMPT, **SMALL | {"seed": None, "num_inference_steps": 1}).seeds[0] for _ in range(3)}
    assert len(seeds) == 3


def test_a_photo_without_a_face_raises_what_the_engine_raises(pipe, engine):
    with pytest.raises(NoFaceFound):
        pipe(PROMPT, Image.new("RGB", (300, 300)), **SMALL)
    assert engine.step() == []


@pytest.mark.parametrize(
    "changes",
    [{"num_inference_steps": 0}, {"num_images_per_prompt": 0}, {"width": 8}, {"height": -256}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_cannot_be_painted_is_refused(pipe, engine, changes):
    with pytest.raises(BadRequest, match="at least one step, one picture, and 16 pixels"):
        pipe(PROMPT, **SMALL | changes)
    assert engine.step() == []


def test_photos_are_turned_upright_and_lose_their_transparency():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(np.rot90(photo("obama")).copy())
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[ExifTags.Base.Orientation] = 6
    assert np.array_equal(as_rgb(turned), photo("obama"))
    assert as_rgb(Image.new("RGBA", (4, 6), (1, 2, 3, 9))).tolist() == [[[1, 2, 3]] * 4] * 6
    assert as_rgb(Image.new("L", (4, 6), 7)).shape == (6, 4, 3)


def test_the_full_size_profile_asks_for_its_paths():
    with pytest.raises(WeightsMissing, match="use tiny"):
        FluxPulidPipeline.from_pretrained()
    with pytest.raises(UnknownProfile):
        FluxPulidPipeline.from_pretrained(profile="best")
