"""The blocks in eight bits, emulated on the CPU: rounding, errors against float64, files, refusals."""

import copy
import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from golden import flux_models, golden_fill, goldens
from golden.test_flux import LOOPS
from pulid.errors import DeviceUnavailable, SetupError, WeightsMissing
from pulid.flux import quantised, quantised_file
from pulid.flux.compiled import compiled_blocks
from pulid.flux.fused import FusedFlux
from pulid.flux.kernels.plain import E4M3, INT8, as_rows, int8_linear
from pulid.flux.step_graph import CapturedFlux, Rerun
from pulid.identity.attention import FoldedIdentity
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES, on_card, why_not
from pulid.state_files import metadata_of

# ---- rounding ----


def e4m3(x):
    """Rounded to e4m3 by the format's definition, in float64: three bits of mantissa, exponents from -6."""
    _, exponent = torch.frexp(x.double())
    unit = torch.ldexp(torch.ones_like(x, dtype=torch.float64), (exponent - 1).clamp(min=-6) - 3)
    return (x.double() / unit).round() * unit  # halves to even


def stands_for(x, form):
    """What a tensor quantised by row stands for, in float64."""
    largest, rounded = {"fp8": (448, e4m3), "int8": (127, torch.round)}[form]
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
    return rounded(x / scale) * scale


def test_values_are_rounded_to_nearest_as_the_format_defines_it():
    grid = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
    grid = grid[grid.isfinite()].sort().values
    halves = (grid[1:] + grid[:-1]) / 2
    x = torch.cat([grid, halves, halves * (1 + 1e-6), halves * (1 - 1e-6)]).float()
    x = x.clamp(-448, 448)
    assert torch.equal(x.to(E4M3).double(), e4m3(x))


BOTH = pytest.mark.parametrize("form", ["fp8", "int8"])


@BOTH
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_each_row_uses_the_whole_range_and_zeros_stay_zeros(size, form):
    x = torch.randn(3, 5, 64) * size
    x[1, 2] = 0
    rows = as_rows(x, quantised.PRECISIONS[form])
    assert rows.values.dtype is {"fp8": E4M3, "int8": INT8}[form]
    assert rows.scale.shape == (3, 5, 1)
    largest = rows.values.float().abs().amax(-1)
    assert set(largest.flatten().tolist()) == {{"fp8": 448.0, "int8": 127.0}[form], 0.0}
    assert largest[1, 2] == 0
    torch.testing.assert_close(
        quantised.dequantised(rows).double(), stands_for(x.double(), form), rtol=1e-6, atol=1e-12
    )


@BOTH
def test_a_product_is_that_of_what_the_rows_stand_for(form):
    x, weight, bias = torch.randn(2, 7, 48), torch.randn(32, 48), torch.randn(32)
    product = {"fp8": quantised.scaled_linear, "int8": int8_linear}[form]
    got = product(*(as_rows(side, quantised.PRECISIONS[form]) for side in (x, weight)), bias)
    expected = F.linear(*(stands_for(side.double(), form) for side in (x, weight)), bias.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


def test_sums_of_whole_numbers_that_float32_cannot_hold_are_right_in_int8():
    """A row of FLUX's longest: 15,360 times 127 times 127 is beyond 2**24."""
    x = torch.ones(1, 2, 15_360)
    x[0, 1, ::2] = -1
    x[0, 1, 0] = 1
    got = int8_linear(as_rows(x, INT8), as_rows(torch.ones(8, 15_360), INT8), torch.zeros(8))
    torch.testing.assert_close(got[0, :, 0], torch.tensor([15_360.0, 2.0]), rtol=1e-6, atol=0)


# ---- the transformer, against float64 ----


def models(name):
    """A copy of a recorded model: quantising changes it."""
    return copy.deepcopy(flux_models.model(name))


def fused_in(form, flux):
    for _, linear in quantised.block_linears(flux.transformer):
        quantised.quantise(linear, linear.weight.data, quantised.PRECISIONS[form])
    return FusedFlux(flux.transformer)


def in_float64(flux, modules, form):
    """diffusers' own blocks in float64, with quantised weights and inputs in the same places."""
    for network in (*flux.transformer.children(), modules):
        network.double()
    for _, linear in quantised.block_linears(flux.transformer):
        linear.weight.data = stands_for(linear.weight.data, form)
        linear.register_forward_pre_hook(lambda _, given: stands_for(given[0], form))
    return flux, modules


def walked(flux, modules, case, dtype=torch.float32, tables=None):
    row = flux_models.flight(modules, case, FoldedIdentity, dtype)
    tables = tables or flux_models.rotary(flux, case)
    while not row.is_done:
        denoise_step(flux, [row], tables)
    return row.latents


def error(got, exact):
    return golden_fill.compare(got, exact)[0]


@cache
def bound(loop, form="fp8"):
    """The recorded latents, and twice what quantising does to a float64 run."""
    case = goldens.case_named("flux", loop)
    expected = goldens.expected(case, "latents_packed")
    emulated = walked(*in_float64(*models(case["model"]), form), case, torch.float64)
    return expected, 2 * error(emulated, expected)


SHORT = "A.loop0.n4.cfg2.5.start1.cfgfrom1"  # both branches, and an identity that comes later


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case["id"] == SHORT else [pytest.mark.release])
        for case in LOOPS
        if case["num_steps"] < 20
    ],
    ids=goldens.case_id,
)
@BOTH
@torch.inference_mode()
def test_goldens_hold_within_twice_the_error_that_quantising_makes_in_float64(case, form):
    expected, allowed = bound(case["id"], form)
    flux, modules = models(case["model"])
    got = error(walked(fused_in(form, flux), modules, case), expected)
    assert 0.1 * allowed < got < allowed < 0.5


# Not those of queries and keys: the norm behind them takes out what their scales have in common.
@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.0.attn.to_v",
        "single_transformer_blocks.1.proj_mlp",
        pytest.param("transformer_blocks.1.ff.net.2", marks=pytest.mark.release),
        pytest.param("transformer_blocks.0.ff_context.net.0.proj", marks=pytest.mark.release),
        pytest.param("single_transformer_blocks.0.proj_out", marks=pytest.mark.release),
    ],
)
@BOTH
@torch.inference_mode()
def test_with_one_scale_removed_they_do_not(name, form):
    case = goldens.case_named("flux", SHORT)
    expected, allowed = bound(SHORT, form)
    flux, modules = models(case["model"])
    fused_in(form, flux)
    getattr(flux.transformer.get_submodule(name), quantised.SCALE).fill_(1.0)
    fused = FusedFlux(flux.transformer)
    assert not error(walked(fused, modules, case), expected) < allowed


def test_what_is_quantised_is_every_product_of_the_blocks_and_nothing_else():
    flux, _ = flux_models.model("A")
    names = {name for name, _ in quantised.block_linears(flux.transformer)}
    linears = {name for name, module in flux.transformer.named_modules() if isinstance(module, nn.Linear)}
    left = {name.split(".")[0] if "blocks" not in name else name.split(".", 2)[2] for name in linears - names}
    modulation = {"norm1.linear", "norm1_context.linear", "norm.linear"}
    assert left == {"x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out", *modulation}
    assert len(names) == 12 * len(flux.transformer.transformer_blocks) + 5 * len(
        flux.transformer.single_transformer_blocks
    )


# ---- files ----


@pytest.fixture(scope="module", params=["fp8", "int8"])
def form(request):
    return request.param


@pytest.fixture(scope="module")
def written(tmp_path_factory, form):
    flux, _ = flux_models.model("A")
    file = tmp_path_factory.mktemp(form) / "small.safetensors"
    heard = []
    quantised_file.write(flux.transformer, file, form, "a test", heard.append)
    assert sum(heard) == sum(x.nbytes for x in flux.transformer.state_dict().values())
    return file


def empty_like_a():
    with torch.device("meta"):
        return FluxTransformer2DModel(
            **flux_models.transformer_kwargs(goldens.manifest("models")["A"])
        ).requires_grad_(False)


def test_a_file_gives_what_quantising_gives(written, form):
    flux, _ = models("A")
    fused_in(form, flux)
    network = empty_like_a()
    quantised_file.read(network, written)
    own, read = flux.transformer.state_dict(), network.state_dict()
    assert own.keys() == read.keys()
    for name, tensor in own.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float()), name
    assert written.stat().st_size < 0.6 * sum(
        x.nbytes for x in models("A")[0].transformer.bfloat16().state_dict().values()
    ) + sum(x.nbytes for name, x in own.items() if x.dtype is torch.float32)
    assert not list(written.parent.glob(".*"))


def test_the_file_says_what_it_is(written, tmp_path):
    assert quantised_file.is_one(written)
    assert metadata_of(written)["made_from"] == "a test"
    state = load_file(written)
    save_file(state, tmp_path / "cast.safetensors")
    assert not quantised_file.is_one(tmp_path / "cast.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("single_transformer_blocks.0.proj_out.weight_scale"), "lacks 1 of its"),
        (lambda state: state.update({LINEAR: state[LINEAR].float()}), "lacks 1 of its quantised weights"),
        (lambda state: state.update({"proj_out.weight": torch.zeros(2, 2)}), "1 shapes differ"),
        (lambda state: state.update({f"{LINEAR}_scale": torch.ones(3, 1)}), "1 shapes differ"),
        (lambda state: state.update({"more": torch.zeros(2)}), "1 keys are unknown"),
        (
            lambda state: state.update({BIAS: state[BIAS].to(INT8)}),
            "1 tensors are of a kind that is not read",
        ),
    ],
    ids=[
        "no scale",
        "no eight bits",
        "another shape",
        "another number of scales",
        "something else",
        "whole numbers elsewhere",
    ],
)
def test_a_file_with_anything_missing_or_wrong_is_refused(written, tmp_path, spoil, words):
    state = load_file(written)
    spoil(state)
    file = tmp_path / "spoiled.safetensors"
    save_file(state, file, metadata=metadata_of(written))
    with pytest.raises(WeightsMissing, match=words):
        quantised_file.read(empty_like_a(), file)


def test_a_form_of_a_later_version_is_refused(written, tmp_path):
    file = tmp_path / "later.safetensors"
    save_file(load_file(written), file, metadata={quantised_file.KEY: "e3m4-by-block"})
    with pytest.raises(WeightsMissing, match="'e3m4-by-block', which this version does not read"):
        quantised_file.read(empty_like_a(), file)


LINEAR, BIAS = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_q.bias"


# ---- refusals ----


def test_cards_without_e4m3_are_named_with_what_to_use_instead():
    for capability in [(8, 9), (9, 0), (10, 0), (12, 0)]:
        assert why_not(PROFILES["fp8"], "cuda:0", "a card", capability) == ""
    said = why_not(PROFILES["fp8"], "cuda:1", "NVIDIA A100-SXM4-80GB", (8, 0))
    assert said.startswith(
        "cuda:1 is NVIDIA A100-SXM4-80GB with compute capability 8.0, and the profile fp8 needs 8.9"
    )
    assert "Use the profile exact" in said
    assert "lowvram" in said


@pytest.mark.parametrize("name", ["lowvram-24g", "lowvram-16g", "lowvram-12g"])
def test_for_want_of_e4m3_low_memory_computes_in_int8_from_ampere_on(name):
    profile = PROFILES[name]
    for capability in [(8, 0), (8, 6)]:
        assert on_card(profile, capability) == dataclasses.replace(profile, linears="int8")
        assert why_not(profile, "cuda:0", "a card", capability) == ""
    assert on_card(profile, (8, 9)) is on_card(profile, (9, 0)) is profile
    said = why_not(profile, "cuda:0", "Tesla T4", (7, 5))
    assert "Tesla T4 with compute capability 7.5" in said
    assert "needs 8.0" in said
    assert "exact" not in said  # it would not fit


def test_other_profiles_are_never_computed_otherwise():
    for name in ("exact", "fp8", "turbo"):
        assert on_card(PROFILES[name], (8, 0)) is PROFILES[name]


def test_a_card_that_cannot_is_refused_before_any_file_is_read(monkeypatch):
    """As load_engine asks: the card's facts are torch's."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(DeviceUnavailable, match=r"RTX 3090 with compute capability 8\.6") as raised:
        quantised.require_linears(PROFILES["turbo"], torch.device("cuda:0"))
    assert isinstance(raised.value, SetupError)


def test_eight_bits_are_a_form_of_the_fused_blocks():
    for linears in ("fp8", "int8"):
        with pytest.raises(ValueError, match="transformer_form must be fused"):
            dataclasses.replace(PROFILES["exact"], linears=linears)
    assert PROFILES["fp8"].linears == "fp8"
    assert PROFILES["exact"].linears == PROFILES["tiny"].linears == "full"


# ---- the other forms of the fused blocks ----


@pytest.mark.release
@torch.inference_mode()
def test_compiled_and_recorded_blocks_compute_the_same_in_fp8():
    """By torch's tracer without its code generator: the whole block is one graph, scales included."""
    case = goldens.case_named("flux", SHORT)
    flux, modules = models(case["model"])
    plain = fused_in("fp8", flux)
    compiled = FusedFlux(flux.transformer, blocks=compiled_blocks("eager"))
    recorded = CapturedFlux(plain, Rerun(), recorded_after=0)
    tables = flux_models.rotary(plain, case)
    expected, *others = (walked(form, modules, case, tables=tables) for form in (plain, compiled, recorded))
    assert recorded.replays > 0
    for got in others:
        goldens.assert_close(got, expected, 1e-6)
