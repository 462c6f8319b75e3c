"""Which attention the blocks run on is asked for where it pays, and told."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from model.test_engine import engine_like
from pulid.flux.attention_backend import backend_for, cudnn_first

CUDA = torch.device("cuda")
CPU = torch.device("cpu")


def order():
    """Of all threads; as numbers."""
    return torch._C._get_sdp_priority_order()


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_on_hopper_and_blackwell_cudnn_is_asked_first_and_afterwards_as_before(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = order()
    with cudnn_first(CUDA):
        assert SDPBackend(order()[0]) == SDPBackend.CUDNN_ATTENTION
        assert sorted(order()) == sorted(before)
    assert order() == before


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (12, 0)])
def test_elsewhere_torch_keeps_its_order(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = order()
    with cudnn_first(CUDA):
        assert order() == before
    with cudnn_first(CPU):
        assert order() == before


def test_the_fused_engine_says_what_torch_takes(engine):
    fused = engine_like(engine, transformer_form="fused")
    config = engine.parts.networks.transformer.config
    size = {"heads": config.num_attention_heads, "head_dim": config.attention_head_dim}
    assert fused.info.details["attention"] == backend_for(CPU, torch.float32, **size) == "flash_attention"
    assert "attention" not in engine.info.details


@pytest.fixture(scope="module")
def engine():
    from pulid.seeded import seeded_engine

    return seeded_engine()
