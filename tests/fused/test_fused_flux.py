"""The fused form of the transformer against diffusers' blocks and against the recorded numbers."""

import dataclasses

import pytest
import torch

from golden import flux_models, golden_fill, goldens, people_loops
from golden.test_flux import FORMS, FORWARDS, LOOPS
from golden.test_people import LOOPS as PEOPLE_LOOPS
from pulid.flux import latents
from pulid.flux.fused import FusedFlux
from pulid.flux.transformer import IdentityFlux
from pulid.identity.attention import FoldedIdentity
from pulid.pipeline import denoise_step
from pulid.profiles import PROFILES

NEAR = 1e-5


def models(name="A"):
    """Both forms over one transformer, and its identity attentions."""
    flux, modules = flux_models.model(name)
    return flux, FusedFlux(flux.transformer), modules


def with_tables(fused, row):
    """The request with its modulation made ahead, as the engine makes it."""
    for branch in filter(None, (row.positive, row.negative)):
        branch.modulation = fused.modulation_table(row.times[:-1], row.request.guidance, branch.text.pooled)
    return row


def assert_steps_are_near(flux, fused, make_flight, tables):
    """Both forms walk from the same noise; their latents stay together after every step."""
    one, other = make_flight(), with_tables(fused, make_flight())
    while not one.is_done:
        denoise_step(flux, [one], tables)
        denoise_step(fused, [other], tables)
        goldens.assert_close(other.latents, one.latents, NEAR, f"step {one.step}")
    return other.latents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", FORWARDS, ids=goldens.case_id)
@torch.inference_mode()
def test_one_forward_is_the_references(case, form):
    flux, fused, modules = models(case["model"])
    x = goldens.inputs(case)
    identity = flux_models.prepared(
        form, modules, x[case["id_input"]] if case["id_input"] else None, case["id_weight"]
    )
    got, plain = (
        flux_models.velocity(
            transformer, latents.pack(x["noise"]), case,
            text=x["txt"], pooled=x["vec"], timestep=case["timestep"], identity=identity,
        )
        for transformer in (fused, flux)
    )  # fmt: skip
    goldens.assert_close(got, goldens.expected(case, "pred"), case["tol"])
    goldens.assert_close(got, plain, NEAR)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        pytest.param(case, form, marks=[pytest.mark.release] if case["num_steps"] >= 20 else [])
        for case in LOOPS
        for form in FORMS
        if case["num_steps"] < 20 or form is FoldedIdentity
    ],
    ids=lambda value: value["id"] if isinstance(value, dict) else value.__name__,
)
@torch.inference_mode()
def test_a_whole_loop_is_the_references_and_each_step_is_diffusers(case, form):
    flux, fused, modules = models(case["model"])
    packed = assert_steps_are_near(
        flux, fused, lambda: flux_models.flight(modules, case, form), flux_models.rotary(flux, case)
    )
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.mark.parametrize("cfg_from", [0, 2])
@pytest.mark.parametrize("start_step", range(5))
@torch.inference_mode()
def test_whatever_step_an_identity_starts_in_both_branches_are_diffusers(start_step, cfg_from):
    flux, fused, modules = models()
    case = goldens.case_named("flux", "A.loop0.n4.cfg2.5.start1.cfgfrom1")
    case = {**case, "start_step": start_step, "timestep_to_start_cfg": cfg_from}

    def two_outputs():
        row = flux_models.flight(modules, case, FoldedIdentity)
        row.seeds = (0, 1)
        row.latents = torch.cat([row.latents, row.latents.flip(1)])
        return row

    assert_steps_are_near(flux, fused, two_outputs, flux_models.rotary(flux, case))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", PEOPLE_LOOPS, ids=goldens.case_id)
@torch.inference_mode()
def test_people_in_their_regions_are_the_recorded_ones(case, form):
    flux, fused, modules = models(case["model"])
    packed = assert_steps_are_near(
        flux, fused, lambda: people_loops.flight(modules, case, form), flux_models.rotary(flux, case)
    )
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.mark.parametrize("name", ["A", "B"])
@torch.inference_mode()
def test_in_bfloat16_its_error_is_no_larger_than_that_of_diffusers_blocks(name):
    """Against float64, same weights. 1000 times this guidance and these times is exact in bfloat16."""
    case = {**goldens.case_named("flux", f"{name}.fwd2.w0.7"), "guidance": 4.0}
    try:
        for network in (flux_models.model(name)[0].transformer, flux_models.model(name)[1]):
            network.bfloat16()
        errors = {IdentityFlux: 0.0, FusedFlux: 0.0}
        for seed in range(3):
            exact = forward(IdentityFlux, name, case, seed, torch.float64)
            for form in errors:
                rounded = forward(form, name, case, seed, torch.bfloat16)
                errors[form] += golden_fill.compare(rounded, exact)[0]
    finally:
        flux_models.model.cache_clear()
    assert 1e-3 < errors[FusedFlux] < 1.1 * errors[IdentityFlux] < 0.1


def forward(form, name, case, seed, dtype):
    """One velocity of model `name` in `dtype`, from weights and inputs that bfloat16 can hold."""
    flux, modules = flux_models.model(name)
    for network in (*flux.transformer.children(), modules):
        network.to(dtype)
    x = {key: value.bfloat16().to(dtype) for key, value in goldens.inputs(case).items()}
    noise = torch.randn(x["noise"].shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(dtype)
    return flux_models.velocity(
        form(flux.transformer), latents.pack(noise), case,
        text=x["txt"], pooled=x["vec"], timestep=[0.5, 0.25],
        identity=flux_models.prepared(FoldedIdentity, modules, x["id"], 0.7, dtype),
    )  # fmt: skip


# ---- modulation ahead ----


@torch.inference_mode()
def test_a_table_holds_what_each_step_would_make():
    _, fused, modules = models()
    case = goldens.case_named("flux", "A.loop1.n8.cfg2.5.start1.cfgfrom1")
    row = flux_models.flight(modules, case, FoldedIdentity)
    x = goldens.inputs(case)
    table = fused.modulation_table(row.times[:-1], case["guidance"], x["vec"])
    assert len(table.rows) == 8

    def velocity(**how):
        return fused(
            row.latents, text=x["txt"], pooled=x["vec"],
            rotary=flux_models.rotary(fused, case), **how,
        )  # fmt: skip

    nothing = torch.full((1,), float("nan"))
    for step, time in enumerate(row.times[:-1]):
        made = velocity(timestep=torch.tensor([time]), guidance=torch.tensor([case["guidance"]]))
        ahead = velocity(timestep=nothing, guidance=nothing, modulation_rows=table.at(step))
        goldens.assert_close(ahead, made, NEAR)


# ---- packed weights ----


def storage_bytes(network):
    """Of each storage once."""
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in network.parameters()}.values()
    )


@torch.inference_mode()
def test_packing_doubles_no_memory_and_leaves_diffusers_blocks_as_they_were():
    flux_models.model.cache_clear()
    case = goldens.case_named("flux", "A.fwd2.w0.7")
    flux, _ = flux_models.model("A")
    x = goldens.inputs(case)

    def velocity():
        return flux_models.velocity(
            flux, latents.pack(x["noise"]), case,
            text=x["txt"], pooled=x["vec"], timestep=case["timestep"], identity=None,
        )  # fmt: skip

    before, state = velocity(), {k: v.clone() for k, v in flux.transformer.state_dict().items()}
    parameters = sum(p.nbytes for p in flux.transformer.parameters())
    fused = FusedFlux(flux.transformer)
    assert storage_bytes(flux.transformer) == parameters
    assert all(torch.equal(v, state[k]) for k, v in flux.transformer.state_dict().items())
    goldens.assert_close(velocity(), before, 1e-6)
    block = flux.transformer.transformer_blocks[0].attn
    assert fused._doubles[0].image.qkv.data_ptr() == block.to_q.weight.data_ptr()
    again = FusedFlux(flux.transformer)
    for one, other in zip(fused._singles, again._singles, strict=True):
        assert one.into.data_ptr() == other.into.data_ptr()
        assert one.into_bias.data_ptr() == other.into_bias.data_ptr()


def test_the_fused_form_is_a_field_of_the_profile_and_of_the_old_ones_none_has_it_yet():
    assert {PROFILES[name].transformer_form for name in ("exact", "tiny")} == {"diffusers"}
    assert dataclasses.replace(PROFILES["exact"], transformer_form="fused").transformer_form == "fused"
