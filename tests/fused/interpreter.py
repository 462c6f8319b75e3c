"""Runs Triton kernels on the CPU, in Triton's interpreter, in a process of its own.

The interpreter must be asked for before triton is imported anywhere, and diffusers imports it. What a
kernel leaves unwritten is NaN there.
"""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from pulid.flux.kernels import choice, plain
from pulid.flux.kernels.choice import ALL_FILES
from pulid.flux.kernels.samples import SAMPLES, Draw, Sizes

CPU = torch.device("cpu")


@contextmanager
def interpreter():
    """A process with the interpreter, for `outputs`."""
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}), ProcessPoolExecutor(1, spawn) as process:
        process.submit(torch.use_deterministic_algorithms, True).result()  # empty memory is NaN, then
        process.submit(_convert_to_e4m3_as_torch_does).result()
        yield process


def _convert_to_e4m3_as_torch_does():
    """The interpreter's own loses the carry of a mantissa that rounds up to the next power of two."""
    from triton.runtime import interpreter as triton_interpreter

    own = triton_interpreter._convert_float

    def convert(data, source, target, rounding):
        if str(target) != "fp8e4nv" or str(source) != "fp32":
            return own(data, source, target, rounding)
        return torch.from_numpy(data).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    triton_interpreter._convert_float = convert


def outputs(form, name, dtype, sizes, changes=(), to=None):
    """What a kernel makes of its samples: `form` is "plain" or "triton". As nested lists of numbers.

    `to`: the precision of rows, if not e4m3. `changes` replaces pieces of the Triton file's text first:
    (old, new) pairs.
    """
    torch.set_num_threads(1)
    if form == "plain":
        function = getattr(plain, name)
    else:
        function = getattr(changed_module(ALL_FILES[name], changes), name)
    function = choice._made_for(to, name, function)
    got = function(*SAMPLES[name](Draw(CPU, dtype), Sizes(**sizes)))
    return [(str(x.dtype), list(x.shape), x.double().flatten().tolist()) for x in choice._tensors(got)]


def changed_module(file, changes):
    """The kernel file as it is, or a copy of it with its text changed."""
    module = importlib.import_module(f"pulid.flux.kernels.{file}")
    if not changes:
        return module
    text = Path(module.__file__).read_text()
    for old, new in changes:
        assert old in text, f"{file} has no {old!r}"
        text = text.replace(old, new)
    copy = Path(os.environ["CHANGED_KERNELS"], f"{file}_{abs(hash(changes))}.py")
    copy.write_text(text)
    spec = importlib.util.spec_from_file_location(copy.stem, copy)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed
