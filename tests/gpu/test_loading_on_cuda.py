"""Loading onto a GPU: the same numbers as on the CPU, at full size in little host memory and no room twice.

    python -m pytest -m gpu -s tests/gpu/test_loading_on_cuda.py

The last tests write 36 GB of random weights (`weights synthesize`) and keep them where the environment
variable FLUX_PULID_TEST_WEIGHTS names a folder; else they are written anew and deleted. Nothing skips:
without a GPU these tests fail.
"""

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from files import reduced_weights
from files.reduced_weights import REDUCED
from model.portraits import difference, picture
from pulid.load import load_engine
from pulid.profiles import PROFILES
from weights.manifest import MANIFEST, Choice, named, needed
from weights.paths import model_paths
from weights.synthesize import synthesize

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(590)]

EXACT = PROFILES["exact"]
STEM = "lora_unet_single_blocks_0_linear1"


# ---- reduced: every layout, and the same numbers as on the CPU ----


@pytest.fixture(scope="module")
def reduced_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("reduced")
    synthesize(MANIFEST, home, tables=reduced_weights.tables)
    return home


@pytest.mark.parametrize(
    "name",
    ["flux1-dev", "flux1-dev-diffusers", "flux1-dev-fp8", "ae-diffusers", "t5-xxl-comfyui", "clip-l-comfyui"],
)
def test_every_layout_loads_with_the_numbers_that_it_has_on_the_cpu(reduced_home, name):
    checkpoint = named(name)
    paths = dataclasses.replace(
        model_paths(reduced_home), **{checkpoint.role: reduced_home / checkpoint.path}
    )
    states = [state_of(load_engine(EXACT, paths, device, architecture=REDUCED)) for device in ("cuda", "cpu")]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert tensor.is_cuda, key
        assert torch.equal(tensor.cpu(), states[1][key]), key


def state_of(engine):
    """Every parameter and buffer of an engine, by network and name."""
    parts = engine.parts
    networks = {
        field.name: getattr(parts.networks, field.name) for field in dataclasses.fields(parts.networks)
    }
    networks |= {"t5": parts.text._t5, "clip": parts.text._clip}
    networks |= {"retinaface": parts.faces._retinaface, "bisenet": parts.faces._parser}
    return {
        f"{name}.{key}": tensor
        for name, network in networks.items()
        for key, tensor in (*network.named_parameters(), *network.named_buffers())
    }


def test_a_lora_is_merged_on_the_card_as_on_the_cpu(reduced_home, tmp_path):
    file = lora(tmp_path)
    loaded = [
        load_engine(EXACT, model_paths(reduced_home), device, architecture=REDUCED, loras=[(file, 0.5)])
        for device in ("cuda", "cpu")
    ]
    for one, other in zip(
        *(engine.parts.networks.transformer.parameters() for engine in loaded), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=2**-7, atol=1e-6)  # one rounding of bfloat16


def lora(folder):
    generator = torch.Generator().manual_seed(5)
    up, down = (torch.randn(shape, generator=generator) for shape in ((7 * 128, 8), (8, 128)))
    save_file({f"{STEM}.lora_up.weight": up, f"{STEM}.lora_down.weight": down}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


# ---- full size ----


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    kept = os.environ.get("FLUX_PULID_TEST_WEIGHTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("full")
    started = time.perf_counter()
    written = synthesize(needed(Choice(), "exact"), folder)
    print(json.dumps({"synthesized_files": len(written), "seconds": round(time.perf_counter() - started, 1)}))
    yield folder
    if not kept:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()


class OwnMemory(threading.Thread):
    """The most memory of its own, in bytes, that this process had: not files that it has mapped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self):
        while not self._done.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            kinds = [
                line.split() for line in lines if line.startswith(("RssAnon", "RssShmem", "VmLck", "VmPin"))
            ]
            self.peak = max(self.peak, sum(1024 * int(kind[1]) for kind in kinds))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self.join()


@pytest.fixture(scope="module")
def loaded(home):
    """The engine, and what loading it took."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    with OwnMemory() as host:
        engine = load_engine(EXACT, model_paths(home), "cuda")
    facts = {
        "load_s": round(time.perf_counter() - started, 1),
        "host_peak_gb": round(host.peak / 1e9, 2),
        "card_gb": round((torch.cuda.memory_allocated() - before) / 1e9, 2),
        "card_peak_gb": round((torch.cuda.max_memory_allocated() - before) / 1e9, 2),
    }
    print(json.dumps(facts))
    return engine, facts


def test_host_memory_stays_small(loaded):
    _, facts = loaded
    assert facts["host_peak_gb"] < 4 + 0.27  # the target, beside the largest tensor


def test_no_network_is_on_the_card_twice(loaded):
    """Whatever is there beside the weights while they are put there is no larger than a few tensors."""
    engine, facts = loaded
    weights = sum(tensor.nbytes for tensor in state_of(engine).values()) / 1e9
    assert facts["card_gb"] == pytest.approx(weights, rel=0.02)
    assert facts["card_peak_gb"] < weights * 1.02 + 0.8


def test_loaded_weights_paint_a_face_at_full_size(loaded):
    engine, _ = loaded
    size = {"width": 896, "height": 1152, "num_steps": 4}
    one, other = (picture(engine, person, **size) for person in ("collins", "obama"))
    assert one.shape == (1152, 896, 3)
    assert one.std() > 1
    assert difference(one, other) > 0
