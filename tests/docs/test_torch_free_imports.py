"""The server process, the contract and the file tools start without the heavy libraries."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "insightface",
    "facexlib",
    "timm",
    "onnxruntime",
)


@pytest.mark.parametrize(
    "module", ["server.app", "server.cli.main", "pulid.engine", "pulid.profiles", "weights.manifest"]
)
def test_importing_it_in_a_fresh_process_loads_no_heavy_library(module):
    report = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
