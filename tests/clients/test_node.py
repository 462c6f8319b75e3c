"""axios and fetch on Node. Both are called the way their users call them; see node/call.js."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from live_server import ServerProcess, form_and_size

NODE = Path(__file__).parent / "node"
WEBP_256 = ("WEBP", (256, 256))


@pytest.fixture(scope="module", params=["axios", "fetch"])
def answers(request: pytest.FixtureRequest, server: ServerProcess, api_key, small) -> dict[str, Any]:
    """Everything one client got."""
    assert shutil.which("node"), "node is needed; see CONTRIBUTING.md"
    assert (NODE / "node_modules" / "axios").is_dir(), f"run `npm ci` in {NODE}"
    done = subprocess.run(
        ["node", "call.js", request.param],
        input=json.dumps({"url": server.url, "key": api_key, "body": small}),
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_v1_answers_with_the_picture_itself(answers):
    """axios accepts "application/json, text/plain, */*" by default, and must get bytes all the same."""
    picture = answers["bytes"]
    assert (picture["status"], picture["type"]) == (200, "image/webp")
    assert form_and_size(base64.b64decode(picture["base64"])) == WEBP_256
    assert float(picture["credits"]) > 0


def test_v1_under_json_answers_with_the_same_picture_as_text(answers):
    assert answers["json"]["status"] == "Success"
    assert answers["json"]["image"] == answers["bytes"]["base64"]


def test_a_job_is_polled_and_its_picture_downloaded_without_a_key(answers):
    assert answers["status"]["status"] == "COMPLETED"
    assert answers["result"]["output"].startswith("http://127.0.0.1:")
    assert answers["download"]["type"] == "image/webp"
    assert answers["download"]["base64"] == answers["bytes"]["base64"]


def test_a_mistake_is_400_with_an_error_text(answers):
    assert answers["mistake"]["status"] == 400
    assert "num_steps" in answers["mistake"]["data"]["error"]
