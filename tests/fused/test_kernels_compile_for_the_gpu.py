"""Every Triton kernel compiles for an H200, at FLUX's width in bfloat16; no GPU is needed for that.

What is looked at is the machine code: loads of 16 bytes where tokens are read, and no memory used for
want of registers. How fast it is, is not to be seen here.
"""

import re
import subprocess
from pathlib import Path

import pytest

from pulid.flux.kernels.choice import triton_form

triton = pytest.importorskip("triton", reason="triton is made for Linux only")

TOKENS, TABLE, WHOLE = "*bf16", "*fp32", "i32"
WIDTH = {"DIM": 3072, "BLOCK": 4096}
NORM = {"EPS": 1e-6}
WARPS = {"beside_gelu": 4, "head_softmax": 4}  # as the files launch them; the others with 8
KERNELS = {  # name: constants, and arguments that are no tensors of bfloat16
    "modulate": (WIDTH | NORM, {}),
    "gated": (WIDTH, {}),
    "gated_modulate": (WIDTH | NORM, {}),
    "own_heads": ({"HEADS": 24, "SIZE": 128, "HEADS_BLOCK": 32} | NORM, {"cos": TABLE, "sin": TABLE}),
    "beside_gelu": ({"DIM": 3072, "WIDTH": 15360, "BLOCK": 1024}, {}),
    "head_softmax": ({"N": 32, "N_BLOCK": 32, "ROWS": 64}, {"offset": TABLE}),
}
NUMBERS = re.compile(r"_row$|_token$|_part$|^(first|tokens|rows|rows_per_group|heads)$")


@pytest.fixture
def cubin(tmp_path, monkeypatch):
    """Compiles a kernel; gives the machine code's file and the PTX text."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def compiled(name):
        constants, types = KERNELS[name]
        module = triton_form(name).__globals__
        kernel = module["heads_kernel" if name == "own_heads" else f"{name}_kernel"]
        arguments = [a for a in kernel.arg_names if a not in constants]
        signature = {a: types.get(a, WHOLE if NUMBERS.search(a) else TOKENS) for a in arguments}
        source = triton.compiler.ASTSource(
            kernel,
            signature | dict.fromkeys(constants, "constexpr"),
            constants,
            {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in arguments},
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target, options={"num_warps": WARPS.get(name, 8)})
        path = tmp_path / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        return path, made.asm["ptx"]

    return compiled


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_reads_16_bytes_at_once_and_spills_nothing(cubin, name):
    path, ptx = cubin(name)
    assert ".target sm_90" in ptx
    assert re.search(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", ptx)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout
    assert "STACK:0" in usage, usage
    assert " LOCAL:0" in usage, usage
