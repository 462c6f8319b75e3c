"""The bench's own model at its tiny scale, and all rows over it; a stand-in for torchao."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench.random_model import SCALES, random_parts, random_request
from bench.rows import rows_of
from pulid.profiles import PROFILES


@pytest.fixture(scope="session")
def tiny_bench():
    scale = SCALES["tiny"]
    parts = random_parts(scale, torch.device("cpu"), torch.float32)
    rows = rows_of(parts, [PROFILES["tiny"]], torch.device("cpu"), backend="eager")

    def request(**changes):
        return random_request(scale, 896, 1152, **changes)

    return SimpleNamespace(parts=parts, rows=rows, request=request)


class Float8Tensor(torch.Tensor):
    """A weight that was rounded as torchao's would be; its inputs are not."""

    @classmethod
    def from_hp(cls, weight, *, granularity, mm_config, act_quant_kwargs):
        assert (granularity, mm_config, act_quant_kwargs) == (
            "rows",
            {"use_fast_accum": True},
            {"granularity": "rows"},
        )
        scale = weight.abs().amax(-1, keepdim=True) / 448
        return ((weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """A linear's result is no weight."""
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        return result.as_subclass(cls) if function is torch.Tensor.detach else result


@pytest.fixture
def torchao(monkeypatch):
    """Modules under torchao's names, of which no more is there than a CPU needs."""

    def module(name, **members):
        made = ModuleType(name)
        made.__dict__.update(members)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, made)

    module("torchao")
    module("torchao.quantization", Float8Tensor=Float8Tensor, Float8MMConfig=dict, PerRow=lambda: "rows")
    module("torchao.quantization.quantize_")
    module("torchao.quantization.quantize_.workflows", QuantizeTensorToFloat8Kwargs=dict)


@pytest.fixture
def no_torchao(monkeypatch):
    monkeypatch.setattr("bench.torchao_peer.find_spec", lambda name: None)
