"""Attention written out is torch's attention, in values and in gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from training.learning.plain_attention import PlainAttention

ASKED = {
    "plain": {},
    "causal": {"is_causal": True},
    "an additive mask": {"attn_mask": torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(4))},
    "a mask of yes and no": {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril(2)},
    "a scale": {"scale": 0.3},
}


@pytest.fixture
def heads():
    """Queries, keys and values, (2, 3 heads, 9 tokens, 16)."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 9, 16, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_values_and_gradients_agree(heads, asked):
    fused = scaled_dot_product_attention(*heads, **asked)
    with PlainAttention():
        plain = scaled_dot_product_attention(*heads, **asked)
    assert plain is not fused
    assert torch.allclose(plain, fused, atol=1e-5, rtol=0)
    towards = torch.randn_like(fused)
    gradients = [torch.autograd.grad(result, heads, towards) for result in (plain, fused)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=0)


def test_it_is_really_written_out(heads):
    fused = scaled_dot_product_attention(*heads)
    with PlainAttention():
        plain = scaled_dot_product_attention(*heads)
    assert "ScaledDotProduct" in type(fused.grad_fn).__name__
    assert "ScaledDotProduct" not in type(plain.grad_fn).__name__


def test_dropout_is_refused(heads):
    with PlainAttention(), pytest.raises(NotImplementedError, match="dropout"):
        scaled_dot_product_attention(*heads, dropout_p=0.1)
