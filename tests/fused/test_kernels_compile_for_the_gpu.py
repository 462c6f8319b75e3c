"""Every Triton kernel compiles for an H200, at FLUX's width in bfloat16; no GPU is needed for that.

Those that are in eight bits compile for the cards that they are for. What is looked at is the machine code:
loads of 16 bytes where tokens are read, and no memory used for want of registers. How fast it is, is not to
be seen here.
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
NUMBERS = re.compile(r"_row$|_token$|_part$|^(first|tokens|rows|rows_per_group|heads|width|outputs)$")
ROW = {"EPS": 1e-6, "SMALLEST": 1e-12}
OF_ROWS = {  # kernels of the file rows
    "modulate_rows": WIDTH | ROW,
    "gated_modulate_rows": WIDTH | ROW,
    "beside_gelu_rows": {"DIM": 3072, "WIDTH": 15360, "BLOCK": 16384, "SMALLEST": 1e-12},
}
PRECISIONS = {"*fp8e4nv": (448.0, (89, 90, 120)), "*i8": (127.0, (80, 86))}  # largest value, capabilities
EIGHT_BITS = [
    (name, constants | {"LARGEST": largest}, {"out": to, "scales": TABLE}, capability)
    for name, constants in OF_ROWS.items()
    for to, (largest, capabilities) in PRECISIONS.items()
    for capability in capabilities
]


@pytest.fixture
def cubin(tmp_path, monkeypatch):
    """Compiles a kernel; gives the machine code's file and the PTX text."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def compiled(kernel, constants, types, capability=90, **options):
        arguments = [a for a in kernel.arg_names if a not in constants]
        signature = {a: types.get(a, WHOLE if NUMBERS.search(a) else TOKENS) for a in arguments}
        source = triton.compiler.ASTSource(
            kernel,
            signature | dict.fromkeys(constants, "constexpr"),
            constants,
            {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in arguments},
        )
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options=options)
        path = tmp_path / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        return path, made

    return compiled


def kernel_of(name):
    module = triton_form(name).__globals__
    return module["heads_kernel" if name == "own_heads" else f"{name}_kernel"]


def usage_of(path):
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run(
        [cuobjdump, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_reads_16_bytes_at_once_and_spills_nothing(cubin, name):
    constants, types = KERNELS[name]
    path, made = cubin(kernel_of(name), constants, types, num_warps=WARPS.get(name, 8))
    ptx = made.asm["ptx"]
    assert ".target sm_90" in ptx
    assert re.search(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", ptx)
    usage = usage_of(path)
    assert "STACK:0" in usage, usage
    assert " LOCAL:0" in usage, usage


@pytest.mark.parametrize(("name", "constants", "types", "capability"), EIGHT_BITS)
def test_what_feeds_a_linear_in_eight_bits_compiles_for_its_cards(cubin, name, constants, types, capability):
    warps = 16 if constants.get("WIDTH", 0) > 8192 else 8
    path, made = cubin(kernel_of(name), constants, types, capability, num_warps=warps)
    assert f".target sm_{capability}" in made.asm["ptx"]
    usage = usage_of(path)
    assert " LOCAL:0" in usage, usage


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_the_linear_in_int8_is_one_of_tensor_cores_and_fits_the_shared_memory(cubin, capability):
    constants = {"BLOCK_ROWS": 128, "BLOCK_OUT": 128, "BLOCK_IN": 128, "GROUP": 8}
    types = {"x": "*i8", "weight": "*i8", "x_scale": TABLE, "weight_scale": TABLE}
    path, made = cubin(kernel_of("int8_linear"), constants, types, capability, num_warps=8, num_stages=3)
    ptx = made.asm["ptx"]
    assert re.search(r"mma\S*\.s32\.s8\.s8", ptx)
    assert set(re.findall(r"cp\.async\.cg\S* \[.*?\], \[.*?\], (\w+)", ptx)) == {"0x10"}  # bytes at once
    assert "STACK:0" in usage_of(path)
    assert made.metadata.shared <= 99 * 1024  # of a program, on RTX 30
