"""Folders of photos, files of prompts, and two engines: the tiny one, and one whose pictures show faces.

The tiny profile paints patterns without faces. So where a cosine has to be a number, `FaceEngine` hands
out a photo in place of the pattern; everything else, the measuring too, is the tiny engine's own.
"""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pulid.seeded import seeded_engine
from server.cli.main import app
from server.settings import Settings

PHOTOS = Path(__file__).parents[1] / "photos"


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory):
    """No setting or data of the machine the tests run on; messages in one line."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)
        patch.setenv("COLUMNS", "500")
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def tiny():
    return seeded_engine()


class FaceEngine:
    """Paints the person of the photo, blurred by little identity; at id_weight 0 always the same stranger."""

    def __init__(self, tiny):
        self._tiny = tiny
        self._request = None
        self.closed = False
        self.painted = 0  # pictures of cells, not the look at the photos
        self.stop_after = None  # pictures; then Ctrl-C comes in the middle of the next one

    def __getattr__(self, name):
        return getattr(self._tiny, name)

    def admit(self, job_id, request):
        self._request = request
        self._tiny.admit(job_id, request)

    def step(self):
        if self.painted == self.stop_after and self._request.num_steps > 1:
            raise KeyboardInterrupt
        return self._tiny.step()

    def decode(self, denoised):
        self.painted += self._request.num_steps > 1
        return replace(self._tiny.decode(denoised), images=(self._picture(),))

    def _picture(self):
        request = self._request
        stranger = Image.open(PHOTOS / "collins.jpg").convert("RGB")
        person = Image.fromarray(request.id_images[0]) if request.id_weight else stranger
        side = round(min(request.width, request.height) * min(0.6 + 0.3 * request.id_weight, 1))
        coarse = person.resize((side, side)).resize((request.width, request.height))
        noise = np.random.default_rng(request.seed).normal(0, 12, (request.height, request.width, 3))
        return (np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)

    def close(self):
        self.closed = True


@pytest.fixture(scope="session")
def with_faces(tiny):
    """Within `with with_faces() as engine`, this engine is behind the command."""

    @contextmanager
    def patched():
        engine = FaceEngine(tiny)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("server.engines.devices_for", lambda profile, devices: ["cpu"])
            patch.setattr("server.engines.create_engine", lambda device, **choice: engine)
            yield engine

    return patched


@pytest.fixture
def engine(with_faces):
    """The engine behind the command of this test; its pictures show faces."""
    with with_faces() as engine:
        yield engine


@pytest.fixture
def faces(tmp_path):
    """A folder with two people."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for name in ("ardern.jpg", "obama.jpg"):
        shutil.copy(PHOTOS / name, folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    """A file with two prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("# portraits\nportrait, neon color\n\n   a knight in the snow  \n")
    return file


@pytest.fixture
def report(tmp_path):
    """Where the report goes."""
    return tmp_path / "report"


@pytest.fixture(scope="session")
def run_command():
    def run(faces, prompts, out, *flags):
        words = ["evaluate", faces, prompts, "--out", out, "--profile", "tiny", *flags]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def evaluate(run_command, faces, prompts, report):
    """The command with these flags, and the usual places where no others are named."""

    def run(*flags, faces=faces, prompts=prompts, out=report):
        return run_command(faces, prompts, out, *flags)

    return run
