"""IDFormer against the reference's outputs, at real and small size, with one photo and with two."""

import pytest
import torch

from golden import golden_fill, goldens
from pulid.identity.idformer import IDFormer

CASES = goldens.cases("modules", "idformer")


@pytest.fixture
def idformer(case, request):
    if case["fill"] == goldens.case_named("modules", "idformer.real")["fill"]:
        return request.getfixturevalue("real_idformer")
    small = golden_fill.fill_(IDFormer(**case["ctor"]), case["fill"]["seed"], case["fill"]["prefix"])
    assert golden_fill.fingerprint(small, case["fill"]["prefix"]) == case["fill"]["crc32"]
    return small.requires_grad_(False)


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_identity_tokens_are_the_recorded_ones(case, idformer):
    given = goldens.inputs(case)
    tokens = idformer(given["id_cond"], [given[f"hidden{i}"] for i in range(5)])
    goldens.assert_close(tokens, goldens.expected(case, "output"), case["tol"])


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_tokens_of_nobody_are_the_recorded_ones_and_not_zero(case, idformer):
    zeros = {name: torch.zeros_like(tensor[:1]) for name, tensor in goldens.inputs(case).items()}
    tokens = idformer(zeros["id_cond"], [zeros[f"hidden{i}"] for i in range(5)])
    goldens.assert_close(tokens, goldens.expected(case, "output_zero_input"), case["tol"])
    assert tokens.abs().max() > 0.1
