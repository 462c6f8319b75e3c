"""An engine that compiles is warm when it is loaded, and too little memory for that is told as ever."""

import dataclasses

import pytest
import torch

from files import tiny_files
from files.tiny_files import FLOAT32, TINY_FILES
from model.portraits import generate, portrait
from pulid.errors import DeviceUnavailable
from pulid.flux.compiled import compiled_blocks, graphs_made
from pulid.load import load_engine
from pulid.seeded import seeded_engine

COMPILED = dataclasses.replace(FLOAT32, transformer_form="fused", compiles=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny_files.save_all(seeded_engine(), tmp_path_factory.mktemp("weights"), "single files")


def load(paths, profile=COMPILED, **options):
    return load_engine(profile, paths, "cpu", architecture=TINY_FILES, **options)


@pytest.fixture
def compiler(monkeypatch):
    """One that needs nothing of the machine, in place of inductor."""
    torch.compiler.reset()
    monkeypatch.setattr("pulid.pipeline.compiled_blocks", lambda: compiled_blocks("eager"))
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
def test_a_loaded_engine_is_compiled_and_its_warm_up_is_told(paths):
    told = []
    engine = load(paths, progress=told.append)
    assert engine.info.details["blocks"] == "compiled"
    assert told[-1].part == "warm-up"
    assert told[-1].done_bytes == told[-1].total_bytes == told[-2].total_bytes
    before = graphs_made()
    generate(engine, portrait(num_steps=1, true_cfg=2.0))
    assert graphs_made() == before


def test_a_profile_that_compiles_nothing_does_not_keep_a_cpu_waiting(paths):
    told = []
    load(paths, FLOAT32, progress=told.append)
    assert "warm-up" not in {report.part for report in told}


@pytest.mark.parametrize("what", ["pulid.flux.fused.double_weights", "pulid.pipeline.proven"])
def test_too_little_memory_for_packing_or_warm_up_is_said_with_what_is_needed(paths, monkeypatch, what):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(what, full)
    with pytest.raises(DeviceUnavailable, match="cpu has too little free memory"):
        load(paths)
