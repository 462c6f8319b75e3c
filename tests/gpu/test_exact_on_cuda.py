"""The exact profile on a GPU: the goldens in float32, then full size with random weights in bfloat16.

    python -m pytest -m gpu -s tests/gpu

Needs about 45 GB of GPU memory and a few minutes. Nothing skips: without a GPU these tests fail.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from golden import flux_models, golden_fill, goldens, people_loops
from gpu.full_size import MARKS, random_engine
from model.portraits import portrait, results
from pulid.engine import Box, Person
from pulid.flux import latents
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity
from pulid.parts import FLUX_DEV
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")
FORMS = [ReferenceIdentity, FoldedIdentity]


@pytest.fixture(scope="module")
def golden_model():
    """Model A on the GPU, in true float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    flux, modules = flux_models.model("A")
    flux.transformer.to(CUDA)
    yield flux, modules.to(CUDA)
    flux_models.model.cache_clear()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", goldens.cases("flux", "denoise_loop"), ids=goldens.case_id)
@torch.inference_mode()
def test_a_whole_loop_is_the_references(golden_model, case, form):
    packed, _ = flux_models.denoise(*golden_model, case, form, device=CUDA)
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", goldens.cases("people", "people_loop"), ids=goldens.case_id)
@torch.inference_mode()
def test_a_loop_with_people_is_the_recorded_one(golden_model, case, form):
    packed = people_loops.denoise(case, form, CUDA)
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.fixture(scope="module")
def full_size():
    return random_engine(dataclasses.replace(FLUX_DEV, clip=MARKS), PROFILES["exact"], CUDA)


def photo(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def request(**changes):
    return portrait(
        None, **{"id_images": (photo(1),), "width": 896, "height": 1152, "num_steps": 4, **changes}
    )


@pytest.mark.parametrize("changes", [{}, {"true_cfg": 2.0, "start_step": 1}, {"num_outputs": 2}], ids=str)
def test_a_request_at_full_size_ends_with_pictures(full_size, changes):
    result = results(full_size, {"job": request(**changes)})["job"]
    assert [image.shape for image in result.images] == [(1152, 896, 3)] * len(result.seeds)
    assert all(image.std() > 1 for image in result.images)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"changes": str(changes), "timings": dict(result.timings), "peak_gib": round(peak, 1)}))
    assert peak < 60


@torch.inference_mode()
def test_an_identity_of_weight_zero_is_plain_flux_bit_for_bit(full_size):
    pictures = [
        results(full_size, {"job": request(**changes)})["job"].images[0]
        for changes in ({"id_weight": 0.0}, {"id_images": ()})
    ]
    assert np.array_equal(*pictures)


LEFT, RIGHT = (Box(left=x, top=0.0, right=x + 0.5, bottom=1.0) for x in (0.0, 0.5))


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_two_people_at_full_size_end_with_a_picture_and_previews_on_the_way(full_size, true_cfg):
    people = (Person(photos=(0,), region=LEFT), Person(photos=(1, 2), fusion="concat", region=RIGHT))
    full_size.watch("job", True)
    full_size.admit(
        "job", request(id_images=(photo(1), photo(2), photo(3)), people=people, true_cfg=true_cfg)
    )
    events = []
    while step := full_size.step():
        events.extend(step)
    assert [event.preview is not None for event in events] == [True, True, True, False]
    assert full_size.decode(events[-1].denoised).images[0].std() > 1


def test_people_of_weight_zero_are_plain_flux_bit_for_bit(full_size):
    people = (Person(photos=(0,), weight=0.0, region=LEFT), Person(photos=(0,), weight=0.0))
    pictures = [
        results(full_size, {"job": request(**changes)})["job"].images[0]
        for changes in ({"people": people}, {"id_images": ()})
    ]
    assert np.array_equal(*pictures)


@torch.inference_mode()
def test_in_bfloat16_both_attention_forms_stay_together_at_full_size(full_size):
    """Latents after four steps; the bound is several times what two correct kernels differ by."""
    reference = PulidFluxEngine(
        full_size.parts, dataclasses.replace(PROFILES["exact"], identity_attention="reference"), CUDA
    )
    packed = []
    for engine in (full_size, reference):
        engine.admit("job", request())
        (flight,) = engine._batch.next_group()
        while engine.step():
            pass
        packed.append(flight.latents)
    error = golden_fill.compare(packed[0], packed[1])[0]
    print(json.dumps({"folded_against_reference_bf16": error}))
    assert error < 0.05


def test_noise_is_drawn_on_the_gpu():
    draw = [
        latents.draw_noise(3, 256, 256, channels=16, dtype=torch.bfloat16, device=torch.device(d)).cpu()
        for d in ("cuda", "cpu")
    ]
    assert not torch.equal(*draw)
