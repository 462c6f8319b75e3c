"""The data folder: what is created in it, and that it has one server."""

import signal
import stat
import subprocess
import sys

import pytest

from pulid.errors import SetupError
from server.jobs.data_dir import DataDir

HOLD = """
import sys, time
from pathlib import Path
from server.jobs.data_dir import DataDir
DataDir(Path(sys.argv[1])).open()
print("held", flush=True)
time.sleep(60)
"""


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "state" / "flux-pulid"


@pytest.fixture
def data_dir(root):
    data_dir = DataDir(root)
    yield data_dir
    data_dir.close()


def test_opening_creates_folders_for_the_server_alone(data_dir, root):
    data_dir.open()
    assert {path.name for path in root.iterdir()} == {"bodies", "media", "lock"}
    assert [mode_of(path) for path in (root, data_dir.bodies, data_dir.media)] == [0o700] * 3
    assert mode_of(root / "lock") == 0o600
    assert data_dir.database.parent == root


def test_folders_of_an_earlier_server_are_kept_and_closed_to_others(data_dir):
    data_dir.bodies.mkdir(parents=True)
    data_dir.bodies.chmod(0o755)
    (data_dir.bodies / "body").write_text("kept")
    data_dir.open()
    assert (data_dir.bodies / "body").read_text() == "kept"
    assert mode_of(data_dir.bodies) == 0o700


def test_a_second_server_is_refused_until_the_first_closes(data_dir, root):
    data_dir.open()
    second = DataDir(root)
    with pytest.raises(SetupError, match=f"Another server uses the data folder {root}"):
        second.open()
    data_dir.close()
    data_dir.close()
    second.open()
    second.close()


def test_a_server_that_is_killed_leaves_no_lock(data_dir, root):
    with subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="Another server"):
            data_dir.open()
        holder.send_signal(signal.SIGKILL)
    data_dir.open()


@pytest.mark.parametrize("obstacle", ["state", "state/flux-pulid", "state/flux-pulid/media"])
def test_a_folder_that_cannot_be_is_explained_and_nothing_stays_locked(data_dir, root, tmp_path, obstacle):
    blocked = tmp_path / obstacle
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file")
    with pytest.raises(SetupError, match=f"The data folder {root} cannot be used: .*DATA_DIR"):
        data_dir.open()
    blocked.unlink()
    data_dir.open()
