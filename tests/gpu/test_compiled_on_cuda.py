"""The compiled blocks on a GPU: FLUX's own widths, few blocks, as one graph serves all of a kind.

    python -m pytest -m gpu -s tests/gpu/test_compiled_on_cuda.py

Prints how long a warm-up takes without a compile cache and with one. Nothing skips: without a GPU these
tests fail.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu.full_size import MARKS, random_engine
from model.portraits import difference, portrait, results
from pulid.engine import Person
from pulid.flux.compiled import compiled_blocks, graphs_made, uncompiled_calls
from pulid.flux.fused import PLAIN_BLOCKS
from pulid.parts import FLUX_DEV
from pulid.profiles import PROFILES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(590)]

CUDA = torch.device("cuda")
COMPILED = dataclasses.replace(PROFILES["exact"], name="compiled", transformer_form="fused", compiles=True)
FEW_BLOCKS = dataclasses.replace(
    FLUX_DEV, clip=MARKS, transformer={**FLUX_DEV.transformer, "num_layers": 2, "num_single_layers": 4}
)
ROOT = Path(__file__).parents[2]
SIZES = [
    (256, 256), (256, 1536), (1536, 256), (512, 512), (768, 512), (896, 1152), (1152, 896),
    (1024, 1024), (1328, 1008), (640, 1456), (272, 1184), (1536, 1536),
]  # fmt: skip


def made():
    return random_engine(FEW_BLOCKS, COMPILED, CUDA)


@pytest.fixture(scope="module")
def warm():
    torch.compiler.reset()
    engine = made()
    engine.warm_up()
    return engine


def test_the_blocks_are_compiled_and_attention_is_cudnns(warm):
    details = warm.info.details
    print(json.dumps(details))
    assert details["blocks"] == "compiled"
    if torch.cuda.get_device_capability() == (9, 0):
        assert details["attention"] == "cudnn_attention"


def test_no_size_batch_or_identity_makes_a_graph_or_runs_uncompiled(warm):
    photo = portrait().id_images[0]
    before = graphs_made(), uncompiled_calls()
    slowest = 0.0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for (width, height), length in zip(SIZES, itertools.cycle((128, 256, 384, 512)), strict=False):
            size = {"width": width, "height": height, "max_sequence_length": length, "num_steps": 1}
            for photos, outputs, true_cfg in (
                (0, 1, 1.0),
                (1, 1, 1.0),
                (1, 2, 1.0),
                (1, 1, 2.0),
                (4, 2, 2.0),
            ):
                people = (Person(photos=tuple(range(photos)), fusion="concat"),) if photos else ()
                request = portrait(
                    None, id_images=(photo,) * photos, people=people,
                    num_outputs=outputs, true_cfg=true_cfg, **size,
                )  # fmt: skip
                done = results(warm, {"job": request})["job"]
                assert all(image.std() > 1 for image in done.images)
                slowest = max(slowest, done.timings["denoise"])
    print(json.dumps({"slowest_first_step_s": round(slowest, 3)}))
    assert (graphs_made(), uncompiled_calls()) == before


def test_a_picture_is_that_of_the_plain_blocks(warm):
    request = portrait(width=896, height=1152, num_steps=4)
    compiled = results(warm, {"job": request})["job"].images[0]
    settled, warm._flux.blocks = warm._flux.blocks, PLAIN_BLOCKS
    try:
        plain = results(warm, {"job": request})["job"].images[0]
    finally:
        warm._flux.blocks = settled
    print(json.dumps({"levels_apart": round(difference(compiled, plain), 4)}))
    assert difference(compiled, plain) < 2


@torch.inference_mode()
def test_a_float32_engine_passes_its_own_stricter_check():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    engine = random_engine(FEW_BLOCKS, dataclasses.replace(COMPILED, dtype="float32"), CUDA)
    engine.warm_up(compiled_blocks())
    assert engine.info.details["blocks"] == "compiled"


CHILD = """
import sys, time
sys.path[:0] = ["tests"]
from gpu.test_compiled_on_cuda import made
engine = made()
started = time.perf_counter()
engine.warm_up()
assert engine.info.details["blocks"] == "compiled", engine.info.details
print(time.perf_counter() - started)
"""


def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    seconds = {}
    for life in ("cold", "warm"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            cwd=ROOT, env={**os.environ, **folders}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds[life] = round(float(done.stdout.splitlines()[-1]), 1)
    print(json.dumps({"warm_up_s": seconds}))
    assert seconds["warm"] < seconds["cold"]
