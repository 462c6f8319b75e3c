"""Who may import whom, as docs/architecture.md draws it, is what the code does.

The contracts themselves stand in pyproject.toml. Here they are run, and seen to break when they should.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from docs.project_files import PACKAGES, ROOT

LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"


def lint_imports(folder):
    """Run the contracts of `folder/pyproject.toml` over the packages in `folder`."""
    command = [LINT_IMPORTS, "--config", "pyproject.toml", "--no-cache", "--no-logo"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)}
    )


@pytest.fixture
def copied_project(tmp_path):
    left_behind = shutil.ignore_patterns("__pycache__", "run", "*.safetensors")
    for package in (*PACKAGES, "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=left_behind)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_contract_is_kept():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("guilty_file", "forbidden_import"),
    [
        ("server/api/v1.py", "pulid.pipeline"),
        ("server/settings.py", "torch"),
        ("pulid/pipeline.py", "weights.paths"),
        ("weights/manifest.py", "pydantic"),
        ("pulid/engine.py", "torch"),
        ("server/jobs/runner.py", "opentelemetry"),
        ("pulid/batch.py", "triton"),
        ("pulid/pipeline.py", "pulid.flux.kernels.gate"),
        ("pulid/tiny.py", "training.prompts"),
        ("training/prompts.py", "server.settings"),
    ],
)
def test_a_forbidden_import_breaks_a_contract_and_is_named(copied_project, guilty_file, forbidden_import):
    path = copied_project / guilty_file
    path.write_text(f"{path.read_text()}\nimport {forbidden_import}\n")
    line = len(path.read_text().splitlines())
    done = lint_imports(copied_project)
    assert done.returncode == 1, done.stdout + done.stderr
    guilty_module = guilty_file.removesuffix(".py").replace("/", ".")
    assert f"{guilty_module} -> {forbidden_import} (l.{line})" in done.stdout
