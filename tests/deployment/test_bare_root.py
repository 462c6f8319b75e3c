"""The container's steps, run for real in a bare Debian root, down to a picture.

Takes minutes, several GB of disk and the package indexes:

    python -m pytest -m release -s tests/deployment

What is not shown by it: that an engine builds the image, and anything of the GPU image beyond the steps
that both share.
"""

import json
import shlex
import shutil

import pytest

from deployment.bare_root import BareRoots, what_is_missing
from docs.dockerfile import read_dockerfile, words_of
from docs.project_files import ROOT

pytestmark = [pytest.mark.release, pytest.mark.timeout(3600)]

PHOTO = ROOT / "tests" / "photos" / "collins.jpg"


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """The root of the finished CPU image."""
    if missing := what_is_missing():
        pytest.fail(f"This test cannot run here: {missing}.")
    folder = tmp_path_factory.mktemp("roots")
    room = BareRoots(folder, read_dockerfile(DEVICE="cpu")).room("server")
    shutil.copy(PHOTO, room.path / "data" / "photo.jpg")
    yield Inside(room)
    shutil.rmtree(folder)


class Inside:
    """Commands as the image's user, with a read-only root, as compose.yaml starts it."""

    def __init__(self, room):
        self.room = room
        self.dockerfile = read_dockerfile(DEVICE="cpu")

    def run(self, command, **given):
        (user,) = self.dockerfile.arguments_of("server", "USER")
        return self.room.run(command, user=user, given=given, writable=("/data", "/models"))

    def words_of(self, instruction):
        (arguments,) = self.dockerfile.arguments_of("server", instruction)
        return shlex.join(words_of(arguments[arguments.index("[") :]))


@pytest.fixture(scope="module")
def keys(container):
    """The setting that names a file with one key."""
    container.run("flux-pulid keys add tester --file /data/keys")
    return {"FLUX_PULID_API_KEYS_FILE": "/data/keys"}


def test_the_doctor_finds_nothing_wrong_and_nothing_worth_a_warning(container, keys):
    report = json.loads(container.run("flux-pulid doctor --json", **keys))
    assert (report["profile"], report["state"]) == ("tiny", "ok"), report


def test_a_picture_is_painted(container, keys):
    out = container.run(
        "flux-pulid generate --face photo.jpg --prompt 'a portrait' --seed 7 --num-steps 4 --out a.webp",
        **keys,
    )
    assert "Wrote a.webp (896x1152, seed 7)." in out
    assert (container.room.path / "data" / "a.webp").read_bytes()[8:12] == b"WEBP"


def test_the_server_starts_is_healthy_and_stops_when_it_is_told_to(container, keys):
    """The image's own command and its own health check."""
    serve, check = (container.words_of(instruction) for instruction in ("CMD", "HEALTHCHECK"))
    container.run(
        f"{serve} & server=$!; "
        f"for attempt in $(seq 60); do sleep 1; if {check} 2>/dev/null; then break; fi; done; "
        f"{check} && kill -TERM $server && wait $server",
        **keys,
    )


def test_the_root_stays_as_it_was_made(container):
    with pytest.raises(AssertionError, match="Read-only file system"):
        container.run("touch /opt/venv/x")


def test_no_build_tool_and_no_source_is_in_the_image(container):
    assert not (container.room.path / "src").exists()
    container.run("! dpkg -s python3-venv")
