"""Identity cross-attention against the reference, in both forms."""

import pytest
import torch

from golden import golden_fill, goldens
from pulid.identity.attention import FoldedIdentity, IdentityAttention, ReferenceIdentity

CASES = goldens.cases("modules", "perceiver_attention_ca")


def filled_module(case):
    module = IdentityAttention(**case["ctor"])
    golden_fill.fill_(module, case["fill"]["seed"], case["fill"]["prefix"])
    assert golden_fill.fingerprint(module, case["fill"]["prefix"]) == case["fill"]["crc32"]
    return module.requires_grad_(False)


def prepared(form, module, id_tokens, id_weight=1.0, dtype=torch.float32):
    """One identity a row, side by side."""
    first, *others = (form.of([module], row[None], id_weight, dtype) for row in id_tokens)
    return first.beside(others)


@pytest.mark.parametrize("form", [ReferenceIdentity, FoldedIdentity])
@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_residual_is_the_references(case, form):
    x = goldens.inputs(case)
    got = prepared(form, filled_module(case), x["id"]).residual(0, x["img"])
    goldens.assert_close(got, goldens.expected(case, "output"), case["tol"], form.__name__)


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_folded_equals_the_reference_form_within_1e_5(case):
    x = goldens.inputs(case)
    module = filled_module(case)
    folded = prepared(FoldedIdentity, module, x["id"], 1.05).residual(0, x["img"])
    reference = prepared(ReferenceIdentity, module, x["id"], 1.05).residual(0, x["img"])
    goldens.assert_close(folded, reference, 1e-5)


def test_in_bfloat16_the_folded_form_is_no_further_from_float64():
    """At real size. The weights are rounded first, so that only the arithmetic differs."""
    case = goldens.case_named("modules", "ca.real.0")
    x = {name: tensor.bfloat16() for name, tensor in goldens.inputs(case).items()}
    module = filled_module(case).bfloat16()
    exact = filled_module(case).bfloat16().double()(x["id"].double(), x["img"].double())

    def error(form):
        got = form.of([module], x["id"], 1.0, torch.bfloat16).residual(0, x["img"])
        return golden_fill.compare(got, exact)[0]

    assert 0 < error(FoldedIdentity) <= 0.85 * error(ReferenceIdentity)


def test_a_bfloat16_module_is_folded_in_float32_and_rounded_once():
    case = goldens.case_named("modules", "ca.small")
    module = filled_module(case).bfloat16()
    id_tokens = goldens.inputs(case)["id"][:1].bfloat16()
    folded = module.fold(id_tokens, 1.05, torch.bfloat16)
    in_float32 = module.float().fold(id_tokens.float(), 1.05, torch.float32)
    assert torch.equal(folded.query_map, in_float32.query_map.bfloat16())
    assert torch.equal(folded.value_map, in_float32.value_map.bfloat16())
    assert torch.equal(folded.query_offset, in_float32.query_offset)
    assert folded.query_offset.dtype == torch.float32


@pytest.mark.parametrize("form", [ReferenceIdentity, FoldedIdentity])
def test_a_silent_identity_adds_exactly_nothing(form):
    case = goldens.case_named("modules", "ca.small")
    x = goldens.inputs(case)
    one, other = (form.of([filled_module(case)], row[None], 1.0, torch.float32) for row in x["id"])
    residual = one.beside([other.silent()]).residual(0, x["img"])
    assert residual[0].abs().max() > 0
    assert torch.equal(x["img"][1] + residual[1], x["img"][1])
