"""Compiled code is kept in the data folder, for the next process; where the operator says, elsewhere."""

import os
import subprocess
import sys

import pytest

from server.app import engine_factory
from server.engines import keep_compiled_code
from server.settings import Settings

FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
ASK = """
import sys
from pathlib import Path
from server.engines import keep_compiled_code
keep_compiled_code(Path(sys.argv[1]))
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
try:
    from triton import knobs
    print(knobs.cache.dir)
except ModuleNotFoundError:  # it is made for Linux only
    print(Path(sys.argv[1]) / "triton")
"""


@pytest.fixture
def environment(monkeypatch):
    """As an operator leaves it who sets none of the folders."""
    for name in FOLDERS:
        monkeypatch.setenv(name, "to be restored")
        del os.environ[name]


@pytest.mark.usefixtures("environment")
def test_both_compilers_keep_what_they_make_there(tmp_path):
    asked = [sys.executable, "-c", ASK, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "torch"), str(tmp_path / "triton")]


@pytest.mark.usefixtures("environment")
def test_what_the_operator_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDERS[0], "/elsewhere")
    keep_compiled_code(tmp_path)
    assert os.environ[FOLDERS[0]] == "/elsewhere"
    assert os.environ[FOLDERS[1]] == str(tmp_path / "triton")


def test_the_server_keeps_it_in_its_data_folder_and_other_commands_do_not(tmp_path):
    settings = Settings(profile="tiny", data_dir=tmp_path)
    server = engine_factory(settings, keeps_compiled_code=True)
    assert server.keywords["compile_cache"] == tmp_path / "compile-cache"
    assert engine_factory(settings).keywords["compile_cache"] is None
