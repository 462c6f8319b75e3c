"""The profile fp8 on a GPU of compute capability 8.9 and later, at full size with random weights.

python -m pytest -m gpu -s tests/gpu/test_fp8_on_cuda.py        under nine minutes; needs 60 GB

Prints what nobody knows yet: times, peak of memory, error against the plain blocks.
"""

import copy
import dataclasses
import time

import pytest
import torch

from fused.test_fp8 import SHORT, bound, error, fused_in, models
from golden import flux_models, goldens
from gpu.full_size import MARKS, random_engine
from pulid.engine import GenerationRequest
from pulid.flux import quantised
from pulid.flux.compiled import graphs_made, uncompiled_calls
from pulid.flux.fused import FusedFlux
from pulid.flux.kernels.choice import AS_ROWS, FILES, PLAIN, choose
from pulid.flux.kernels.choice import in_fp8 as kernels_in_fp8
from pulid.flux.kernels.plain import as_rows
from pulid.flux.step_graph import RECORDED_AFTER
from pulid.flux.text_int8 import quantise, t5_linears
from pulid.identity.attention import FoldedIdentity
from pulid.parts import FLUX_DEV, build_text_models
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

CUDA = torch.device("cuda")
WIDTH = 3072
PRODUCTS = [  # (in, out) of every linear, packed
    *((WIDTH, out) for out in (WIDTH, 3 * WIDTH, 4 * WIDTH, 7 * WIDTH)),
    *((into, WIDTH) for into in (4 * WIDTH, 5 * WIDTH)),
]
FEW_BLOCKS = dataclasses.replace(
    FLUX_DEV, clip=MARKS, transformer={**FLUX_DEV.transformer, "num_layers": 2, "num_single_layers": 4}
)
REQUEST = GenerationRequest(prompt="a portrait", seed=1, width=896, height=1152, num_steps=4)


def test_the_card_passes_its_check():
    quantised.require_linears(PROFILES["fp8"], CUDA)


def test_every_kernel_passes_its_check_at_full_width():
    plain = choose(CUDA, torch.bfloat16, heads=24, head_dim=128)
    kernels = kernels_in_fp8(plain, quantised.scaled_linear, CUDA, torch.bfloat16, heads=24, head_dim=128)
    assert kernels.notes == dict.fromkeys((*FILES, *AS_ROWS.values()), "triton")
    assert all(getattr(kernels, field) is not getattr(PLAIN, field) for field in AS_ROWS)


@pytest.mark.parametrize("tokens", [1, 37, 512, 4160])
@pytest.mark.parametrize(("into", "out"), PRODUCTS)
@torch.inference_mode()
def test_every_product_of_the_blocks_is_the_emulated_one(into, out, tokens):
    draw = torch.Generator(CUDA).manual_seed(into + out + tokens)
    x, weight, bias = (
        torch.randn(shape, generator=draw, device=CUDA, dtype=torch.bfloat16)
        for shape in ((1, tokens, into), (out, into), (out,))
    )
    rows, matrix = as_rows(x), as_rows(weight)
    got, expected = (
        form(rows, matrix, bias).float() for form in (quantised.scaled_linear, quantised.emulated_linear)
    )
    assert (got - expected).norm() < quantised.TOLERANCE * expected.norm()


@torch.inference_mode()
def test_t5_in_int8_is_what_it_is_on_the_cpu():
    """A block of T5-XXL, quantised on either; the card rounds the last bits of scales in its own way."""
    t5, _ = build_text_models(FLUX_DEV)
    here = t5.encoder.block[0].to(torch.bfloat16).to_empty(device="cpu")
    torch.manual_seed(7)
    here.apply(t5._init_weights)
    there = copy.deepcopy(here).to(CUDA)
    for block in (here, there):
        for name, linear in list(t5_linears(block)):
            quantise(block, name, linear.weight.data)
    for name, linear in t5_linears(here):
        other = there.get_submodule(name)
        torch.testing.assert_close(other.scale.cpu(), linear.scale, rtol=1e-6, atol=0)
        steps = (other.weight.cpu().short() - linear.weight.short()).abs()
        assert steps.max() <= 1
        assert steps.float().mean() < 1e-3
    x = torch.randn(1, 128, 4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    got, expected = (block(x.to(where))[0].float().cpu() for block, where in ((there, CUDA), (here, "cpu")))
    assert error(got, expected) < 2e-2
    assert torch.cuda.max_memory_allocated() - held < 2e8  # one matrix in bfloat16 at a time, 84 MB


def walked_on_the_card(form):
    """Of the recorded loop: the error in bfloat16, the only precision that a product in fp8 has on a card."""
    case = goldens.case_named("flux", SHORT)
    flux, modules = models(case["model"])
    flux.transformer.to(CUDA, torch.bfloat16)
    fused = FusedFlux(flux.transformer) if form == "full" else fused_in(form, flux)
    row = flux_models.flight(modules.to(CUDA, torch.bfloat16), case, FoldedIdentity, torch.bfloat16, CUDA)
    tables = flux_models.rotary(fused, case, CUDA)
    while not row.is_done:
        denoise_step(fused, [row], tables)
    return error(row.latents.float().cpu(), bound(SHORT)[0])


@torch.inference_mode()
def test_a_recorded_loop_holds_within_the_bound_of_the_emulation():
    """Beside what bfloat16 does to this small model without quantising, which is more."""
    _, allowed = bound(SHORT)
    got, in_full = walked_on_the_card("fp8"), walked_on_the_card("full")
    print(f"\nrelative error {got:.4f}, without quantising {in_full:.4f}, allowed {allowed:.4f} beside that")
    assert got < in_full + allowed


@pytest.mark.parametrize(
    "form", [{"compiles": True}, {"captures": True}, {"compiles": True, "captures": True}], ids=str
)
def test_compiled_and_captured_it_gives_what_it_gives_plain(form):
    """With few blocks of the full widths; more than RECORDED_AFTER steps, so that some are replays."""
    request = dataclasses.replace(REQUEST, num_steps=RECORDED_AFTER + 4, width=512, height=512)
    latents = []
    for profile in (PROFILES["fp8"], dataclasses.replace(PROFILES["fp8"], name="other", **form)):
        torch.compiler.reset()
        engine = random_engine(FEW_BLOCKS, profile, CUDA)
        engine.warm_up()
        graphs = graphs_made(), uncompiled_calls()
        engine.admit("job", request)
        while events := engine.step():
            denoised = events[-1].denoised
        assert (graphs_made(), uncompiled_calls()) == graphs
        latents.append(denoised.latents.packed.float().cpu())
    print(f"\n{form}: {engine.info.details}")
    if "compiles" in form:
        assert engine.info.details["blocks"] == "compiled"
    if "captures" in form:
        assert engine._forward.replays > 0
        assert "refused" not in engine._forward.described()
    plain, other = latents
    relative = float((other - plain).norm() / plain.norm())
    print(f"relative difference to the plain form after {request.num_steps} steps: {relative:.2e}")
    assert relative <= (0.1 if "compiles" in form else 0.0)  # compiled, other values are rounded up or down


def latents_of(name):
    """After all steps, and what a second picture took; the engine is gone afterwards."""
    engine = random_engine(dataclasses.replace(FLUX_DEV, clip=MARKS), PROFILES[name], CUDA)
    engine.warm_up()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # of quantising: the random weights were made in bfloat16
    held = torch.cuda.memory_allocated()
    for _ in range(2):
        engine.admit("job", REQUEST)
        started = time.perf_counter()
        while events := engine.step():
            denoised = events[-1].denoised
        elapsed = time.perf_counter() - started
    engine.decode(denoised)
    print(
        f"\n{name}: {elapsed / REQUEST.num_steps * 1000:.1f} ms a step, {held / 1e9:.1f} GB held,"
        f" {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most, {engine.info.details}"
    )
    return denoised.latents.packed.float().cpu()


def test_latents_stay_near_those_of_exact_and_the_peak_is_below_the_stated_one():
    exact = latents_of("exact")
    torch.cuda.empty_cache()
    in_8_bits = latents_of("fp8")
    assert torch.cuda.max_memory_allocated() < PROFILES["fp8"].device_memory
    relative = float((in_8_bits - exact).norm() / exact.norm())
    print(f"relative error against exact after {REQUEST.num_steps} steps: {relative:.4f}")
    assert 1e-3 < relative < 0.3
