"""What is said about libraries whose builds can disagree."""

import subprocess
import sys

import pytest

from pulid.probe import LibraryFacts
from pulid.profiles import PROFILES
from server.checks.libraries import check_onnx_packages, check_onnx_providers, check_torchvision

EXACT, TINY = PROFILES["exact"], PROFILES["tiny"]


def facts(**changes):
    sound = {"torchvision": "", "torchvision_is_mended": False, "onnx_providers": ("CPUExecutionProvider",)}
    return LibraryFacts(**(sound | changes))


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Only packages of these names are installed."""

    def put(*names):
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return put


def test_both_packages_of_onnxruntime_together_are_a_fault_with_the_way_out(installed):
    installed("onnxruntime", "onnxruntime-gpu")
    found = check_onnx_packages()
    assert found.state == "fault"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found.text


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_one_of_them_is_fine(installed, name):
    installed(name)
    found = check_onnx_packages()
    assert (found.state, found.text) == ("ok", f"{name} 1.0.")


def test_none_of_them_is_a_fault(installed):
    installed("numpy")
    assert check_onnx_packages().state == "fault"


def test_faces_need_the_cpu_provider():
    assert check_onnx_providers(facts()).state == "ok"
    found = check_onnx_providers(facts(onnx_providers=("AzureExecutionProvider",)))
    assert found.state == "fault"
    assert "AzureExecutionProvider" in found.text


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        ({}, {"tiny": "ok", "exact": "ok"}),
        ({"torchvision_is_mended": True}, {"tiny": "ok", "exact": "warning"}),
        ({"torchvision": "undefined symbol: x"}, {"tiny": "fault", "exact": "fault"}),
    ],
)
def test_a_torchvision_beside_the_wrong_torch_is_told(changes, states):
    found = {profile.name: check_torchvision(profile, facts(**changes)).state for profile in (TINY, EXACT)}
    assert found == states


def test_a_torch_that_does_not_load_is_a_finding_and_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    report = (
        "from server.checks.machine import machine; from pulid.profiles import PROFILES; "
        "print(*[(f.check, f.state, f.text) for f in machine(PROFILES['tiny'], 'all')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert "'torch', 'fault'" in done.stdout
    assert "libcudart.so.13" in done.stdout
    assert "pip install --force-reinstall" in done.stdout
