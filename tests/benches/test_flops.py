"""Operations counted from shapes, against a table that was made apart (TFLOP of one forward pass)."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import LOSSY_HEADLINE, PARTS, Case, expected_s, tflop_of
from bench.denoise import shape_of
from bench.flops import FLUX_DEV_SHAPE, forward
from bench.reference import ReferenceFlux
from bench.variants import VARIANTS
from pulid.parts import FLUX_DEV, build_networks

# image tokens, text tokens: blocks' linears, attention, identity, the same folded, everything
TABLE = {
    (1024, 128): (14.87, 0.93, 0.53, 0.13, 16.34),
    (4032, 128): (53.71, 12.12, 2.06, 0.51, 67.90),
    (4032, 512): (58.66, 14.46, 2.06, 0.51, 75.21),
    (4096, 128): (54.53, 12.50, 2.09, 0.52, 69.14),
    (9216, 128): (120.6, 61.2, 4.70, 1.16, 186.5),
}


@pytest.mark.parametrize("tokens", TABLE, ids=str)
def test_the_operations_are_those_of_the_table(tokens):
    once = forward(*tokens)
    counted = (once.linear, once.attention, once.identity, once.identity_folded, once.with_identity)
    for number, expected in zip(counted, TABLE[tokens], strict=True):
        assert number / 1e12 == pytest.approx(expected, abs=0.06 if expected > 60 else 0.0051)


@pytest.fixture(scope="module")
def full_size():
    """The real sizes without memory."""
    return build_networks(FLUX_DEV)


def test_the_shape_is_the_models(full_size):
    assert shape_of(SimpleNamespace(networks=full_size)) == FLUX_DEV_SHAPE


@pytest.mark.parametrize("with_identity", [True, False])
def test_torch_counts_the_same_operations_in_the_reference_at_full_size(full_size, with_identity):
    flux = ReferenceFlux(full_size.transformer, full_size.identity_attentions, torch.bfloat16)
    flux.attentions.to(torch.bfloat16)

    def tensor(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    with FlopCounterMode(display=False) as counter:
        velocity = flux(
            tensor(1, 4032, 64),
            tensor(4032, 3, dtype=torch.float32),
            tensor(1, 128, 4096),
            tensor(1),
            tensor(1),
            tensor(1, 768),
            tensor(1, 32, 2048) if with_identity else None,
            1.0,
        )
    once = forward(4032, 128)
    assert velocity.shape == (1, 4032, 64)
    assert counter.get_total_flops() == pytest.approx(
        once.with_identity if with_identity else once.plain, rel=1e-5
    )


def test_true_cfg_and_several_outputs_multiply_the_work():
    once = tflop_of(Case(num_steps=20))
    assert tflop_of(Case(num_steps=20, changes={"true_cfg": 2.0})) == 2 * once
    assert tflop_of(Case(num_steps=20, changes={"num_outputs": 4})) == 4 * once
    assert once == pytest.approx(20 * 67.90, rel=1e-3)


def test_plain_flux_does_less():
    plain, whole = tflop_of(Case(), has_identity=False), tflop_of(Case())
    assert (whole - plain) / plain == pytest.approx(0.0313, abs=0.0005)


def test_every_case_fits_into_one_call_of_nine_minutes():
    rows = ["reference", "peer", "plain", "ours-exact", *(f"ours-exact+{name}" for name in VARIANTS)]
    assert max(expected_s(part, case, rows) for part, cases in PARTS.items() for case in cases) < 460
    lossy = ["reference", "peer", "peer-fp8", "plain", "ours-exact", "ours-fp8", "ours-turbo"]
    assert sum(expected_s("headline", case, lossy) for case in LOSSY_HEADLINE) < 460
