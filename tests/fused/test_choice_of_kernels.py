"""A Triton form is used where it has been seen to be right, and nowhere else."""

import subprocess
import sys

import pytest
import torch

from pulid.flux.kernels import choice, plain
from pulid.flux.kernels.choice import PLAIN, Kernels, checked, choose, in_fp8
from pulid.flux.kernels.samples import SAMPLES, Draw, Sizes
from pulid.flux.quantised import scaled_linear

CPU = torch.device("cpu")


def samples(name):
    return [SAMPLES[name](Draw(CPU, torch.float32), Sizes(heads=2, head_dim=8, identity_tokens=4))]


def test_on_the_cpu_every_kernel_is_plain():
    kernels = choose(CPU, torch.float32, heads=24, head_dim=128)
    assert kernels is PLAIN
    assert kernels.described() == "plain"
    for name in choice.FILES:
        assert getattr(kernels, name) is getattr(plain, name)


def test_in_fp8_whatever_feeds_a_linear_quantises_for_it():
    kernels = in_fp8(PLAIN, scaled_linear, CPU, torch.float32, heads=24, head_dim=128)
    assert kernels.linear is scaled_linear
    assert {field: getattr(kernels, field) for field in choice.AS_ROWS} == {
        field: getattr(plain, name) for field, name in choice.AS_ROWS.items()
    }
    assert kernels.gated is plain.gated


@pytest.mark.parametrize("name", choice.ALL_FILES)
def test_a_right_form_is_taken(name):
    def form(*arguments):
        return getattr(plain, name)(*arguments)

    assert checked(name, lambda: form, samples(name)) == (form, "triton")


def off_by(share):
    """In the last tensor of what a kernel gives."""

    def spoiled(name):
        return lambda *arguments: spoil(getattr(plain, name)(*arguments))

    def spoil(got):
        if isinstance(got, torch.Tensor):
            return got * (1 + share)
        *others, last = got
        return (*others, spoil(last))

    return spoiled


@pytest.mark.parametrize("name", choice.ALL_FILES)
@pytest.mark.parametrize("spoil", [off_by(1e-4), off_by(float("nan"))], ids=["slightly", "not a number"])
def test_a_wrong_form_is_left_aside(name, spoil):
    form, note = checked(name, lambda: spoil(name), samples(name))
    assert form is getattr(plain, name)
    assert note == "plain (the Triton form computed something else)"


def test_one_bit_is_too_much_where_forms_are_exact():
    form, _ = checked("gated", lambda: off_by(2.0**-23)("gated"), samples("gated"))
    assert form is plain.gated


def test_memory_that_a_form_leaves_unwritten_counts_as_wrong():
    def form(*arguments):
        return torch.full_like(plain.gated(*arguments), float("nan"))

    assert checked("modulate", lambda: form, samples("modulate"))[0] is plain.modulate


def test_a_form_that_does_not_compile_is_left_aside_and_named():
    def form(*arguments):
        raise ValueError("ptxas failed")

    assert checked("gated", lambda: form, samples("gated")) == (
        plain.gated,
        "plain (ValueError in the Triton form)",
    )


def test_without_triton_everything_is_plain():
    def load():
        raise ModuleNotFoundError("No module named 'triton'")

    form, note = checked("gated", load, samples("gated"))
    assert form is plain.gated
    assert note == "plain (ModuleNotFoundError in the Triton form)"


def test_too_little_memory_is_not_taken_for_a_wrong_kernel():
    def form(*arguments):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        checked("gated", lambda: form, samples("gated"))


def test_the_notes_are_one_line_for_the_details():
    kernels = Kernels(notes={"gated": "triton", "modulate": "plain (ImportError in the Triton form)"})
    assert kernels.described() == "gated: triton, modulate: plain (ImportError in the Triton form)"


def test_no_triton_file_is_imported_where_the_engine_runs_on_the_cpu():
    code = (
        "import sys, pulid.tiny, pulid.flux.fused\n"
        f"files = {sorted(set(choice.ALL_FILES.values()))}\n"
        "print([f for f in files if f'pulid.flux.kernels.{f}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
