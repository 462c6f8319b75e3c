"""The blocks are one graph each, whatever the size of picture and text: nothing is compiled anew.

A batch of one and a batch of several are two graphs: a size of one is always known to the compiler.
The backend changes no arithmetic; what a GPU's compiler makes of the graphs is not tested here.
"""

import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from golden import flux_models
from pulid.flux.fused import FusedFlux, double_block, folded_attention, single_block
from pulid.flux.kernels.choice import FILES, Kernels, triton_form

SIZES = [(8, 20), (6, 30), (8, 64), (128, 33), (3, 16)]  # text and image tokens


@pytest.fixture(autouse=True)
def forgetful_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def fused():
    return FusedFlux(flux_models.model("A")[0].transformer)


def graphs():
    """How many have been made since the compiler was emptied."""
    return counters["stats"]["unique_graphs"]


class Inputs:
    """Random streams, modulation and tables, as the loop hands them on."""

    def __init__(self, fused, batch, text, image):
        config = fused.transformer.config
        draw, dim, head_dim = torch.randn, fused.transformer.inner_dim, config.attention_head_dim
        self.joint = draw(batch, text + image, dim)
        self.text, self.image = self.joint[:, :text].contiguous(), self.joint[:, text:].contiguous()
        self.of_text, self.of_image, self.of_joint, _ = draw(batch, 16 * dim).split(
            [6 * dim, 6 * dim, 3 * dim, dim], dim=-1
        )
        self.rotary = draw(text + image, head_dim), draw(text + image, head_dim)
        self.length = text
        self.maps = draw(1, dim, 24), draw(1, 1, 24)


def run_double(function, fused, x):
    return [
        function(fused.kernels, weights, x.text, x.image, x.of_text, x.of_image, *x.rotary)
        for weights in fused._doubles
    ]


def run_single(function, fused, x):
    return [function(fused.kernels, weights, x.joint, x.of_joint, *x.rotary) for weights in fused._singles]


def run_identity(function, fused, x):
    return function(fused.kernels, x.joint[:, x.length :], *x.maps, 3)


@pytest.mark.parametrize(
    ("block", "run"),
    [(double_block, run_double), (single_block, run_single), (folded_attention, run_identity)],
)
@torch.inference_mode()
def test_one_graph_serves_every_block_and_every_size(fused, block, run):
    function = torch.compile(block, backend="eager", fullgraph=True, dynamic=True)
    run(function, fused, Inputs(fused, 1, *SIZES[0]))
    assert graphs() == 1
    run(function, fused, Inputs(fused, 2, *SIZES[0]))
    assert graphs() == 2
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, (text, image) in itertools.product((1, 2, 3, 4), SIZES):
            x = Inputs(fused, batch, text, image)
            torch.testing.assert_close(run(function, fused, x), run(block, fused, x))
    assert graphs() == 2
    assert not counters["graph_break"]


class OneBlock(torch.nn.Module):
    """As `torch.export` wants a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("name", "launches"), [("double", 8), ("single", 4), ("identity", 1)])
def test_with_triton_a_block_is_one_graph_that_holds_its_kernels(fused, monkeypatch, batch, name, launches):
    """Traced as on a GPU, and not run: for this the tracer must take Triton to be usable here."""
    pytest.importorskip("triton", reason="triton is made for Linux only")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    kernels = Kernels(**{kernel: triton_form(kernel) for kernel in FILES})
    x = Inputs(fused, batch, *SIZES[0])
    function, tensors = {
        "double": (
            lambda *tensors: double_block(kernels, fused._doubles[0], *tensors),
            (x.text, x.image, x.of_text, x.of_image, *x.rotary),
        ),
        "single": (
            lambda *tensors: single_block(kernels, fused._singles[0], *tensors),
            (x.joint, x.of_joint, *x.rotary),
        ),
        "identity": (lambda *tensors: folded_attention(kernels, *tensors, 3), (x.image, *x.maps)),
    }[name]
    graph = torch.export.export(OneBlock(function), tensors, strict=True).graph
    assert sum("triton_kernel_wrapper" in str(node.target) for node in graph.nodes) == launches
