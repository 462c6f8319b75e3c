"""The fused transformer on a GPU: every kernel in its Triton form, and the goldens in float32.

python -m pytest -m gpu -s tests/gpu/test_fused_on_cuda.py
"""

import pytest
import torch

from golden import flux_models, goldens, people_loops
from pulid.flux.fused import FusedFlux
from pulid.flux.kernels.choice import FILES, choose
from pulid.identity.attention import FoldedIdentity
from pulid.pipeline import denoise_step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_kernel_passes_its_check_at_full_width(dtype):
    kernels = choose(CUDA, dtype, heads=24, head_dim=128)
    assert kernels.notes == dict.fromkeys(FILES, "triton")


@pytest.fixture(scope="module")
def golden_model():
    """Model A on the GPU, in true float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    flux, modules = flux_models.model("A")
    fused = FusedFlux(flux.transformer.to(CUDA))
    assert set(fused.kernels.notes.values()) == {"triton"}
    yield fused, modules.to(CUDA)
    flux_models.model.cache_clear()


def denoised(fused, row, tables):
    for branch in filter(None, (row.positive, row.negative)):
        branch.modulation = fused.modulation_table(row.times[:-1], row.request.guidance, branch.text.pooled)
    while not row.is_done:
        denoise_step(fused, [row], tables)
    return row.latents


@pytest.mark.parametrize("case", goldens.cases("flux", "denoise_loop"), ids=goldens.case_id)
@torch.inference_mode()
def test_a_whole_loop_is_the_references(golden_model, case):
    fused, modules = golden_model
    row = flux_models.flight(modules, case, FoldedIdentity, device=CUDA)
    packed = denoised(fused, row, flux_models.rotary(fused, case, CUDA))
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.mark.parametrize("case", goldens.cases("people", "people_loop"), ids=goldens.case_id)
@torch.inference_mode()
def test_a_loop_with_people_is_the_recorded_one(golden_model, case):
    fused, modules = golden_model
    row = people_loops.flight(modules, case, FoldedIdentity, CUDA)
    packed = denoised(fused, row, flux_models.rotary(fused, case, CUDA))
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])
