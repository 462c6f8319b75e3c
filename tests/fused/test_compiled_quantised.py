"""The blocks in fp8 under torch's compiler: one graph each, and what may differ from the plain ones.

Products are torch's own of e4m3 matrices, as on a card, which torch computes on the CPU, too. What a
GPU's compiler makes of the graphs is not tested here.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from fused.test_compiled_blocks import SIZES, Inputs, OneBlock, graphs, run_double, run_single
from fused.test_fp8 import fused_in, models
from pulid.flux import quantised
from pulid.flux.compiled import QUANTISING, TOLERANCES, agrees, proven
from pulid.flux.fused import PLAIN_BLOCKS, FusedFlux, double_block, single_block
from pulid.flux.kernels import plain
from pulid.flux.kernels.choice import AS_ROWS, FILES, Kernels, triton_form


@pytest.fixture(autouse=True)
def forgetful_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def fused():
    """In bfloat16, with the product of the card."""
    flux, _ = models("A")
    flux.transformer.bfloat16()
    made = fused_in("fp8", flux)
    made.kernels = replace(made._block_kernels, linear=quantised._on_tensor_cores)
    return made


def inputs(fused, batch, text, image):
    """As the loop hands them on; tables stay in float32."""
    made = Inputs(fused, batch, text, image)
    for name in ("joint", "text", "image", "of_text", "of_image", "of_joint"):
        setattr(made, name, getattr(made, name).bfloat16())
    return made


@pytest.mark.parametrize(
    ("block", "run"),
    [pytest.param(double_block, run_double, marks=pytest.mark.release), (single_block, run_single)],
)
@torch.inference_mode()
def test_one_graph_serves_every_quantised_block_and_every_size(fused, block, run):
    function = torch.compile(block, backend="eager", fullgraph=True, dynamic=True)
    for batch in (1, 2):
        run(function, fused, inputs(fused, batch, *SIZES[0]))
        assert graphs() == batch
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, (text, image) in itertools.product((1, 4), SIZES[1:3]):
            x = inputs(fused, batch, text, image)
            torch.testing.assert_close(run(function, fused, x), run(block, fused, x))
    assert graphs() == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize(("name", "launches"), [("double", 12), ("single", 4)])
def test_with_triton_a_quantised_block_is_one_graph_that_holds_its_kernels(
    fused, monkeypatch, name, launches
):
    """Traced as on a GPU, and not run: for this the tracer must take Triton to be usable here."""
    pytest.importorskip("triton", reason="triton is made for Linux only")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    forms = {kernel: triton_form(kernel) for kernel in FILES}
    forms |= {field: triton_form(kernel) for field, kernel in AS_ROWS.items()}
    kernels = Kernels(linear=quantised._on_tensor_cores, **forms)
    x = inputs(fused, 1, *SIZES[0])
    function, tensors = {
        "double": (
            lambda *tensors: double_block(kernels, fused._doubles[0], *tensors),
            (x.text, x.image, x.of_text, x.of_image, *x.rotary),
        ),
        "single": (
            lambda *tensors: single_block(kernels, fused._singles[0], *tensors),
            (x.joint, x.of_joint, *x.rotary),
        ),
    }[name]
    graph = torch.export.export(OneBlock(function), tensors, strict=True).graph
    assert sum("triton_kernel_wrapper" in str(node.target) for node in graph.nodes) == launches
    assert sum("_scaled_mm" in str(node.target) for node in graph.nodes) == {"double": 8, "single": 2}[name]


# ---- what may differ ----


def unrounded(residual, gate, y, scale, shift):
    """`gated_modulate_rows` as a compiler fuses it: what is normed was not rounded before."""
    x = residual.float() + gate.float()[:, None] * y.float()
    return x.to(residual.dtype), plain.modulate_rows(x, scale, shift)


def doubled(fused, kernels=None, weights=None, swap=False):
    """Text and image after a double block of 160 and 323 tokens, as in the warm-up."""
    torch.manual_seed(5)
    x = inputs(fused, 1, 160, 323)
    of_text, of_image = x.of_text / 2, x.of_image / 2
    if swap:
        shift, scale, gate, *mlp, mlp_gate = of_image.chunk(6, dim=-1)
        of_image = torch.cat((shift, scale, mlp_gate, *mlp, gate), dim=-1)
    weights = weights or fused._doubles[0]
    return double_block(kernels or fused.kernels, weights, x.text, x.image, of_text, of_image, *x.rotary)


def agree(got, expected, tolerances):
    return all(agrees(one, other, tolerances) for one, other in zip(got, expected, strict=True))


@torch.inference_mode()
def test_a_rounding_less_is_within_the_tolerance_of_blocks_that_quantise(fused):
    got = doubled(fused, replace(fused.kernels, gated_modulate=unrounded))
    assert agree(got, doubled(fused), QUANTISING)
    assert not agree(got, doubled(fused), TOLERANCES)


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param((name, torch.zeros_like), id=f"no {name}") for name in
          ("qkv_bias", "out_bias", "up_bias", "down_bias")),
        *(pytest.param((name, lambda rows: rows._replace(scale=torch.ones_like(rows.scale))),
                       id=f"no scale of {name}") for name in ("qkv", "out", "up", "down")),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_what_is_left_out_is_beyond_it(fused, change):
    name, spoiled = change
    block = fused._doubles[0]
    weights = block._replace(image=block.image._replace(**{name: spoiled(getattr(block.image, name))}))
    assert not agree(doubled(fused, weights=weights), doubled(fused), QUANTISING)


@torch.inference_mode()
def test_swapped_gates_are_beyond_it(fused):
    assert not agree(doubled(fused, swap=True), doubled(fused), QUANTISING)


@pytest.mark.parametrize(("linears", "note"), [("fp8", "slightly off"), ("full", "plain: ComputesOtherwise")])
@torch.inference_mode()
def test_only_blocks_that_quantise_are_given_that_tolerance(linears, note):
    flux, _ = models("A")
    flux.transformer.bfloat16()
    made = fused_in("fp8", flux) if linears == "fp8" else FusedFlux(flux.transformer)
    x = inputs(made, 1, *SIZES[0])

    def off(*given):
        return tuple(1.015 * out for out in double_block(*given))

    def run():
        run_double(lambda _, *given: made.blocks.double(made._block_kernels, *given), made, x)

    blocks = replace(PLAIN_BLOCKS, double=off, note="slightly off")
    assert proven(made, blocks, run).note == note
