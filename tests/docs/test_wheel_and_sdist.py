"""What is shipped: the three packages with their data, runnable; no tests, no model but the tiny profile's.

Builds offline from the working tree: an sdist, and the wheel out of that sdist.
"""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from docs.project_files import PACKAGES, ROOT, project_files

MODEL_SUFFIXES = {".safetensors", ".onnx", ".pt", ".pth", ".gguf"}
TINY_MODEL = "pulid/data/tiny.safetensors"


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with one .tar.gz and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel_names(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed_bin(dist, tmp_path_factory):
    """The scripts folder of a new environment that has the wheel, and this environment's libraries."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    (wheel,) = dist.glob("*.whl")
    scripts = Path(sysconfig.get_path("scripts", "venv", vars={"base": home, "platbase": home}))
    run(scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=home)
    libraries = sysconfig.get_path(
        "purelib"
    )  # as plain path: .pth files in it, so our checkout, are not followed
    new_site = Path(sysconfig.get_path("purelib", "venv", vars={"base": home, "platbase": home}))
    (new_site / "libraries.pth").write_text(libraries)
    return scripts


def test_the_wheel_holds_every_file_of_the_three_packages_and_nothing_else(wheel_names):
    shipped = {name for name in wheel_names if ".dist-info/" not in name}
    assert shipped == {name for name in project_files() if name.startswith(tuple(f"{p}/" for p in PACKAGES))}


def test_the_wheel_carries_the_licence_and_the_notice(wheel_names):
    assert {"LICENSE", "NOTICE"} <= {
        PurePosixPath(name).name for name in wheel_names if ".dist-info/" in name
    }


def test_the_only_model_file_in_the_wheel_is_the_tiny_profiles(wheel_names):
    models = {name for name in wheel_names if PurePosixPath(name).suffix in MODEL_SUFFIXES}
    assert models == {TINY_MODEL}


def test_the_only_model_format_files_in_the_sdist_are_the_tiny_profiles_and_the_golden_numbers(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    models = {name for name in names if name.suffix in MODEL_SUFFIXES}
    assert PurePosixPath(TINY_MODEL) in models
    golden = models - {PurePosixPath(TINY_MODEL)}
    assert {name.parent for name in golden} == {PurePosixPath("tests/golden/open")}


def test_the_command_runs_from_the_installed_wheel(installed_bin):
    helped = run(installed_bin / "flux-pulid", "--help", cwd=installed_bin)
    assert "generate" in helped
    assert "serve" in helped


def test_the_installed_packages_are_the_wheels_own(installed_bin):
    report = (
        "import server, pulid, weights; print(server.__file__, pulid.__file__, weights.__file__, sep='\\n')"
    )
    found = run(installed_bin / "python", "-c", report, cwd=installed_bin).splitlines()
    assert all(Path(path).is_relative_to(installed_bin.parent) for path in found), found
