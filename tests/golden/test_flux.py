"""FLUX with identity against the reference: single forwards, whole loops, bytes."""

import pytest
import torch

from golden import flux_models, golden_fill, goldens
from pulid.flux import latents
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity

FORMS = [ReferenceIdentity, FoldedIdentity]
FORWARDS = goldens.cases("flux", "transformer_forward")
LOOPS = goldens.cases("flux", "denoise_loop")
LOOPS_BF16 = goldens.cases("extra", "denoise_loop_bf16")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", FORWARDS, ids=goldens.case_id)
@torch.inference_mode()
def test_one_forward_is_the_references(case, form):
    flux, modules = flux_models.model(case["model"])
    x = goldens.inputs(case)
    id_tokens = x[case["id_input"]] if case["id_input"] else None
    got = flux_models.velocity(
        flux,
        latents.pack(x["noise"]),
        case,
        text=x["txt"],
        pooled=x["vec"],
        timestep=case["timestep"],
        identity=flux_models.prepared(form, modules, id_tokens, case["id_weight"]),
    )
    goldens.assert_close(got, goldens.expected(case, "pred"), case["tol"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LOOPS, ids=goldens.case_id)
@torch.inference_mode()
def test_a_whole_loop_is_the_references(case, form):
    packed, forwards = flux_models.denoise(*flux_models.model(case["model"]), case, form)
    assert forwards == case["forward_calls"]
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])
    if "latents_unpacked" in case["outputs"]:
        got = latents.unpack(packed, case["height"], case["width"])
        goldens.assert_close(got, goldens.expected(case, "latents_unpacked"), case["tol"])


@pytest.mark.parametrize("case", LOOPS_BF16, ids=goldens.case_id)
@torch.inference_mode()
def test_a_bfloat16_loop_stays_near_the_references(case):
    """The bound allows for other CPUs' kernels; the stock pipeline's timestep rounding lands at 0.03."""
    flux, modules = flux_models.model("A")
    flux.transformer.bfloat16()
    try:
        loop = goldens.case_named("flux", case["same_as"])
        packed, _ = flux_models.denoise(flux, modules.bfloat16(), loop, FoldedIdentity, torch.bfloat16)
    finally:
        flux_models.model.cache_clear()
    error = golden_fill.compare(packed, goldens.expected(case, "latents_packed"))[0]
    assert error < 1.5 * case["tol"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_are_the_references(dtype):
    (case,) = goldens.cases("output", "output_conversion")
    (image,) = latents.to_uint8(goldens.tensor_input(case["input"]).to(getattr(torch, dtype)))
    assert torch.equal(torch.from_numpy(image), goldens.expected(case, f"u8_{dtype}"))


@pytest.mark.parametrize("name", ["A", "B"])
@torch.inference_mode()
def test_without_identity_the_loop_is_diffusers_bit_for_bit(name):
    case = goldens.case_named("flux", f"{name}.fwd2.noid")
    flux, modules = flux_models.model(name)
    x = goldens.inputs(case)
    packed = latents.pack(x["noise"])
    expected = flux.transformer(
        hidden_states=packed,
        encoder_hidden_states=x["txt"],
        pooled_projections=x["vec"],
        timestep=torch.tensor(case["timestep"]),
        guidance=torch.full((2,), case["guidance"]),
        img_ids=latents.image_ids(case["height"], case["width"], torch.device("cpu")),
        txt_ids=latents.text_ids(case["txt_len"], torch.device("cpu")),
        return_dict=False,
    )[0]
    for form in (None, *FORMS):
        identity = form and flux_models.prepared(form, modules, x["id"], 0.0)
        got = flux_models.velocity(
            flux, packed, case, text=x["txt"], pooled=x["vec"], timestep=case["timestep"], identity=identity
        )
        assert torch.equal(got, expected), form


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_a_batch_equals_its_singles(form):
    """Different people, timesteps and texts side by side, one of them without an identity yet."""
    case = goldens.case_named("flux", "A.fwd2.w0.7")
    flux, modules = flux_models.model("A")
    x = goldens.inputs(case)
    packed = latents.pack(x["noise"])
    people = [flux_models.prepared(form, modules, row[None], 0.7) for row in x["id"]]

    def run(rows, identity):
        return flux_models.velocity(
            flux, packed[rows], case, text=x["txt"][rows], pooled=x["vec"][rows],
            timestep=[case["timestep"][r] for r in rows], identity=identity,
        )  # fmt: skip

    both = run([0, 1], people[0].beside(people[1:]))
    goldens.assert_close(both[:1], run([0], people[0]), 1e-5)
    goldens.assert_close(both[1:], run([1], people[1]), 1e-5)
    late = run([0, 1], people[0].beside([people[1].silent()]))
    goldens.assert_close(late[1:], run([1], None), 1e-5)
