"""The samples people paste into their code run as printed, with only the base URL changed.

Their photos lie on hosts in the world, which a server on this machine stands for: the real fetcher
resolves and dials, through another resolver and another wire (tests/staged_server.py). The samples
ask for 20 steps at full size, so a scripted engine paints; the real one does in a `release` test.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Script
from live_server import ServerProcess, form_and_size, live_server

HERE = Path(__file__).parent
PUBLIC_PAGE = HERE / "public_page_sample.txt"  # verbatim: it ends with .json()
OWN_PAGE = HERE.parents[1] / "docs" / "spec" / "flux-pulid-page.md"  # ends with .content
SIZE = (896, 1152)


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory, photo_hosts) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("samples")
    script = Script(folder / "script")
    script.folder.mkdir()
    with live_server(
        folder / "data", scripted=script, photo_hosts=photo_hosts, api_keys="samples:YOUR_API_KEY"
    ) as live:
        yield live


def run_sample(code: str, *, base: str, new_base: str, folder: Path) -> str:
    """What the sample prints."""
    assert code.count(base) == 1, "exactly one thing is to be changed"
    script = folder / "sample.py"
    script.write_text(code.replace(base, new_base))
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_public_page_sample(server: ServerProcess, photo_host, folder: Path) -> None:
    photo_host.asked.clear()
    printed = run_sample(
        PUBLIC_PAGE.read_text(), base="https://api.segmind.com", new_base=f"{server.url}/json", folder=folder
    )
    answer = json.loads(printed)
    assert answer["status"] == "Success"
    assert answer["seed"] == 720558
    assert form_and_size(base64.b64decode(answer["image"], validate=True)) == ("WEBP", SIZE)
    assert photo_host.asked == [
        "segmind-sd-models.s3.amazonaws.com/display_images/flux-pulid-ip.jpeg",
    ]


def test_the_public_page_s_sample_gets_its_json_under_the_json_base_url(quick_server, photo_host, tmp_path):
    check_public_page_sample(quick_server, photo_host, tmp_path)


@pytest.mark.release
def test_the_public_page_s_sample_gets_a_picture_of_the_real_engine(server, photo_host, tmp_path):
    check_public_page_sample(server, photo_host, tmp_path)


def test_the_documented_sample_saves_the_bytes_of_a_picture(quick_server, photo_host, tmp_path):
    photo_host.asked.clear()
    (code,) = re.findall(r"```python\n(.*?)```", OWN_PAGE.read_text(), flags=re.DOTALL)
    printed = run_sample(code, base="http://127.0.0.1:8000", new_base=quick_server.url, folder=tmp_path)
    assert printed == ""
    assert form_and_size((tmp_path / "portrait.webp").read_bytes()) == ("WEBP", SIZE)
    assert photo_host.asked == ["example.com/photo.jpg"]
