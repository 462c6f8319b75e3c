"""Each kernel's Triton form, run by Triton's interpreter on the CPU, against its plain form."""

import os
from unittest import mock

import pytest
import torch

from fused.interpreter import interpreter, outputs
from pulid.flux.kernels.choice import ALL_FILES, AS_ROWS, EXACT, agrees

pytest.importorskip("triton", reason="triton is made for Linux only")

SMALL = {"heads": 3, "head_dim": 16, "identity_heads": 4, "identity_tokens": 8}
SIZES = [  # no width is a multiple of a program's block; tokens and batch run through odd ones
    {**SMALL, "batch": 1, "text": 3, "image": 7},
    {**SMALL, "batch": 2, "text": 1, "image": 16, "identity_tokens": 12},
    {**SMALL, "batch": 3, "text": 8, "image": 1, "heads": 1, "identity_heads": 3},
    {**SMALL, "batch": 4, "text": 2, "image": 9, "heads": 5, "head_dim": 32, "identity_tokens": 33},
    {"batch": 1, "text": 2, "image": 3},  # FLUX's own width
]
FORMS = [(name, None) for name in ALL_FILES] + [(name, torch.int8) for name in AS_ROWS.values()]
# The interpreter cuts bfloat16 off where a GPU rounds: half a unit in the last place on average.
# Where that comes before e4m3, one value in ten is a sixteenth away; before int8 one of up to 127.
CUT_OFF = {torch.bfloat16: 5e-3, torch.float8_e4m3fn: 2e-2, torch.int8: 2e-2, torch.float32: 5e-3}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    changed = str(tmp_path_factory.mktemp("changed_kernels"))
    with mock.patch.dict(os.environ, {"CHANGED_KERNELS": changed}), interpreter() as process:
        yield process


def both(process, name, dtype, sizes, changes=(), to=None):
    """The tensors of the Triton form and those of the plain form."""
    got = process.submit(outputs, "triton", name, dtype, sizes, changes, to).result()
    return tensors(got), tensors(outputs("plain", name, dtype, sizes, to=to))


def tensors(described):
    return [torch.tensor(x).reshape(shape).to(getattr(torch, dtype[6:])) for dtype, shape, x in described]


@pytest.mark.parametrize(
    "sizes", SIZES, ids=lambda sizes: f"{sizes['batch']}x{sizes['text']}+{sizes['image']}"
)
@pytest.mark.parametrize(("name", "to"), FORMS)
def test_in_float32_the_triton_form_is_the_plain_form(process, name, to, sizes):
    for got, expected in zip(*both(process, name, torch.float32, sizes, to=to), strict=True):
        assert expected.double().isfinite().all()
        assert agrees(got, expected, exactly=name in EXACT)


@pytest.mark.parametrize(("name", "to"), FORMS)
def test_in_bfloat16_it_is_so_but_for_the_last_bit(process, name, to):
    for got, expected in zip(*both(process, name, torch.bfloat16, SIZES[1], to=to), strict=True):
        assert got.dtype == expected.dtype
        error = (got.double() - expected.double()).norm() / expected.double().norm()
        assert error < CUT_OFF[expected.dtype]


WRONG = [
    ("modulate", "gain = 1.0 + ", "gain = "),
    ("modulate", "+ row * x_row", ""),
    ("modulate", "values - mean, 0.0", "values - mean, 1.0"),
    ("gated", "stream + factor", "stream - factor"),
    ("gated", "+ row * gate_row", ""),
    ("gated_modulate", "/ deviation * gain", "/ deviation"),
    ("gated_modulate", "+ row * shift_row", ""),
    ("own_heads", "even * c - odd * s", "even * c + odd * s"),
    ("own_heads", "part == 0, of_query, of_key", "part == 0, of_key, of_query"),
    ("joint_heads", "place = first + token", "place = token"),
    ("joint_heads", "place * SIZE + 2 *", "token * SIZE + 2 *"),
    ("joint_heads", "mean_square + EPS", "mean_square + 1.0"),
    ("beside_gelu", "column < WIDTH)\n    kept", "column < WIDTH - 1)\n    kept"),
    ("beside_gelu", "0.044715", "0.44715"),
    ("head_softmax", "% heads", "% 1"),
    ("head_softmax", "column < N, values", "column < N + 1, values"),
    ("as_rows", "/ LARGEST", "/ 400.0"),
    ("as_rows", "row * WIDTH + column", "column"),
    ("modulate_rows", "/ deviation * gain", "/ deviation"),
    ("modulate_rows", "tl.abs(values)", "values"),
    ("gated_modulate_rows", "kept + factor", "kept - factor"),
    ("gated_modulate_rows", "tl.store(scales + row", "tl.store(scales"),
    ("gelu_rows", "1.5957691216057308", "1.5"),
    ("beside_gelu_rows", "left | right", "right"),
    ("int8_linear", "* of_columns[None, :]", ""),
    ("int8_linear", "+ added[None, :]", ""),
    ("int8_linear", "place < width", "place < width - 1"),
    ("int8_linear", "first + within % group", "within % group"),
    ("int8_linear", "[None, :] * width", "[None, :]"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG)
def test_a_mistake_in_a_kernel_shows(process, name, right, wrong):
    got, expected = both(process, name, torch.float32, SIZES[1], ((right, wrong),))
    assert not all(agrees(*pair, exactly=name in EXACT) for pair in zip(got, expected, strict=True))


def test_in_int8_values_are_rounded_and_not_cut_off(process):
    got, expected = both(
        process,
        "as_rows",
        torch.float32,
        SIZES[1],
        (("(fitted + ROUNDING) - ROUNDING", "fitted"),),
        torch.int8,
    )
    assert not agrees(got[0], expected[0], exactly=False)


def test_what_a_kernel_does_not_write_shows(process):
    got, expected = both(
        process, "gated", torch.float32, SIZES[0], (("mask=inside)\n\n\n@", "mask=column < 5)\n\n\n@"),)
    )
    assert got[0].isnan().any()
    assert not agrees(got[0], expected[0], exactly=False)
