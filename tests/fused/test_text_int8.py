"""T5's matrices in int8: their error against float64, and what is quantised. Streamed: test_low_memory.py."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from pulid.flux.text_int8 import Int8Linear, quantise, t5_linears
from pulid.parts import FLUX_DEV, build_text_models
from pulid.profiles import PROFILES, T5_SAVES, with_t5_in_int8
from pulid.seeded import fill_randomly

KINDS = {
    0: ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
    1: ("DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"),
}
NAMES = [f"layer.{layer}.{kind}" for layer, kinds in KINDS.items() for kind in kinds]
IDS = torch.randint(1, 50, (1, 64), generator=torch.Generator().manual_seed(1))
OUTLIER = 300  # times what the other channels have, as T5's own are


@pytest.fixture(scope="module")
def t5():
    """Deep enough for errors to add up, with a channel that is an outlier from the embedding on."""
    sizes = {"d_model": 96, "d_kv": 32, "d_ff": 256, "num_layers": 6, "num_heads": 3}
    model = T5EncoderModel(T5Config(vocab_size=50, feed_forward_proj="gated-gelu", **sizes))
    fill_randomly(model.requires_grad_(False).eval(), 5)
    model.shared.weight[:, 7] *= OUTLIER
    return model


def in_int8(t5, dtype=torch.float32):
    model = copy.deepcopy(t5).to(dtype)
    for name, linear in list(t5_linears(model)):
        quantise(model, name, linear.weight.data)
    return model


def emulated(t5):
    """In float64, each weight the nearest of 255 steps that reach to the largest of its output."""
    model = copy.deepcopy(t5).double()
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        step = linear.weight.abs().max(dim=1, keepdim=True).values / 127
        linear.weight.data = torch.floor(linear.weight / step + 0.5) * step
    return model


@torch.inference_mode()
def tokens(t5):
    return t5(input_ids=IDS).last_hidden_state


def error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def bound(t5):
    """Exact tokens, and twice what rounding the weights does to them."""
    exact = tokens(copy.deepcopy(t5).double())
    return exact, 2 * error(tokens(emulated(t5)), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_hold_within_twice_the_error_that_rounding_the_weights_makes_in_float64(t5, bound, dtype):
    exact, allowed = bound
    got = tokens(in_int8(t5, dtype))
    assert got.dtype is dtype
    assert 0.1 * allowed < error(got, exact) < allowed < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_with_one_scale_removed_they_do_not(t5, bound, name):
    exact, allowed = bound
    model = in_int8(t5)
    model.get_submodule(f"encoder.block.2.{name}").scale.fill_(1)
    assert not error(tokens(model), exact) < allowed


def test_activations_keep_their_precision_on_the_way_into_every_product(t5):
    """transformers casts those of `wo` to its weight's, and leaves them where that is int8."""
    model, seen = in_int8(t5, torch.bfloat16), []
    for _, linear in t5_linears(model):
        linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    tokens(model)
    assert seen == [torch.bfloat16] * 7 * 6


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float64, 1e-12), (torch.bfloat16, 1.01 * 2**-7)],
    ids=["float64", "bfloat16"],
)
def test_no_weight_and_no_scale_is_rounded_twice(t5, dtype, allowed):
    """A product of whole numbers and float32 scales; in bfloat16 rounded before the scale, and after."""
    linear = in_int8(t5, dtype).encoder.block[0].layer[1].DenseReluDense.wo
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    exact = x.double() @ (linear.weight.double() * linear.scale[:, None].double()).T
    torch.testing.assert_close(
        linear(x).double(), exact, rtol=allowed, atol=1e-5 if allowed > 1e-3 else 1e-12
    )


# ---- what is quantised ----


def test_what_is_quantised_is_every_product_of_the_blocks_and_nothing_else(t5):
    model = in_int8(t5)
    assert [name for name, _ in t5_linears(model)] == [
        f"encoder.block.{number}.{name}" for number in range(6) for name in NAMES
    ]
    own, left = t5.state_dict(), model.state_dict()
    quantised = {name for name, tensor in left.items() if tensor.dtype is torch.int8}
    assert quantised == {f"{name}.weight" for name, _ in t5_linears(t5)}
    assert left.keys() - own.keys() == {f"{name}.scale" for name, _ in t5_linears(t5)}
    for name in own.keys() - quantised:
        assert torch.equal(own[name], left[name])


def test_a_row_of_zeros_stays_one():
    weight = torch.cat([torch.zeros(1, 8), torch.ones(1, 8)])
    assert torch.equal(
        Int8Linear(nn.Parameter(weight, requires_grad=False), weight)(torch.ones(1, 8)),
        torch.tensor([[0.0, 8.0]]),
    )


# ---- memory ----


def test_a_card_is_promised_no_more_than_is_saved():
    t5, _ = build_text_models(FLUX_DEV)
    saved = sum(linear.weight.numel() - 4 * linear.out_features for _, linear in t5_linears(t5))
    assert saved - 10**8 < T5_SAVES < saved


@pytest.mark.parametrize("name", ["fp8", "turbo"])
def test_profiles_without_a_limit_then_fit_a_card_of_32_gb(name):
    small = with_t5_in_int8(PROFILES[name])
    assert small.device_memory == PROFILES[name].device_memory - T5_SAVES < 33 * 10**9
    assert small.host_memory == 0
    assert (
        dataclasses.replace(small, t5_int8=False, device_memory=PROFILES[name].device_memory)
        == PROFILES[name]
    )


@pytest.mark.parametrize("name", ["exact", "tiny"])
def test_profiles_in_full_precision_have_no_such_t5(name):
    with pytest.raises(ValueError, match="computes in full precision, and so does its T5"):
        with_t5_in_int8(PROFILES[name])
