"""Blocks in int8 on a GPU, as cards of the generation Ampere compute the profiles lowvram-*.

    python -m pytest -m gpu -s tests/gpu/test_int8_on_cuda.py        two minutes; needs 20 GB

Compute capability 8.0 and later: a card that knows fp8 serves too. Prints what nobody knows yet: how fast
a product is, of what the card's tensor cores could.
"""

import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F

from fused.test_fp8 import SHORT, bound, error, fused_in, models
from golden import flux_models, goldens
from gpu.test_fp8_on_cuda import PRODUCTS
from pulid.flux import quantised
from pulid.flux.kernels.choice import AS_ROWS, FILES, choose, in_int8, triton_form
from pulid.flux.kernels.plain import INT8, as_rows, int8_linear
from pulid.identity.attention import FoldedIdentity
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")
IN_INT8 = dataclasses.replace(PROFILES["lowvram-24g"], linears="int8")


def test_the_card_passes_its_check():
    quantised.require_linears(IN_INT8, CUDA)


def test_every_kernel_passes_its_check_at_full_width():
    width = {"heads": 24, "head_dim": 128}
    kernels = in_int8(choose(CUDA, torch.bfloat16, **width), CUDA, torch.bfloat16, **width)
    assert kernels.notes == dict.fromkeys((*FILES, *AS_ROWS.values(), "int8_linear"), "triton")


def sides(into, out, tokens):
    draw = torch.Generator(CUDA).manual_seed(into + out + tokens)
    return [
        torch.randn(shape, generator=draw, device=CUDA, dtype=torch.bfloat16)
        for shape in ((1, tokens, into), (out, into), (out,))
    ]


@pytest.mark.parametrize("tokens", [37, 512, 4160])
@pytest.mark.parametrize(("into", "out"), PRODUCTS)
@torch.inference_mode()
def test_every_product_of_the_blocks_is_the_emulated_one(into, out, tokens):
    x, weight, bias = sides(into, out, tokens)
    rows, matrix = as_rows(x, INT8), as_rows(weight, INT8)
    expected = quantised.emulated_linear(rows, matrix, bias).float()
    for form in (int8_linear, triton_form("int8_linear")):
        assert (form(rows, matrix, bias).float() - expected).norm() < quantised.TOLERANCE * expected.norm()


def milliseconds(compute, repeats=20):
    compute()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        compute()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats * 1000


@pytest.mark.parametrize(("into", "out"), PRODUCTS)
@torch.inference_mode()
def test_a_product_is_timed_beside_that_in_bfloat16(into, out):
    x, weight, bias = sides(into, out, 4160)
    rows, matrix = as_rows(x, INT8), as_rows(weight, INT8)
    forms = {
        "bfloat16": lambda: F.linear(x, weight, bias),
        "int8, Triton": lambda: triton_form("int8_linear")(rows, matrix, bias),
        "int8, torch": lambda: int8_linear(rows, matrix, bias),
    }
    times = {name: milliseconds(form) for name, form in forms.items()}
    operations = 2 * 4160 * into * out
    print(
        f"\n{into} -> {out}: "
        + ", ".join(f"{name} {ms:.3f} ms ({operations / ms / 1e9:.0f} TOP/s)" for name, ms in times.items())
    )
    assert min(times.values()) > 0


@torch.inference_mode()
def test_a_recorded_loop_holds_within_the_bound_of_the_emulation():
    case = goldens.case_named("flux", SHORT)
    expected, allowed = bound(SHORT, "int8")
    flux, modules = models(case["model"])
    flux.transformer.to(CUDA)
    fused = fused_in("int8", flux)
    row = flux_models.flight(modules.to(CUDA), case, FoldedIdentity, torch.float32, CUDA)
    tables = flux_models.rotary(fused, case, CUDA)
    while not row.is_done:
        denoise_step(fused, [row], tables)
    got = error(row.latents.cpu(), expected)
    print(f"\nrelative error {got:.4f}, allowed {allowed:.4f}")
    assert got < allowed
