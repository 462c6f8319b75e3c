"""curl, as in the docs: a body from a file, the picture into a file."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_server import ServerProcess, form_and_size, wait_until

WEBP_256 = ("WEBP", (256, 256))


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    redirects: int
    body: bytes


class Curl:
    def __init__(self, url: str, key: str, folder: Path) -> None:
        self._url = url
        self._key = key
        self._folder = folder

    def post(self, path: str, body: dict[str, object], *options: str) -> Answer:
        (self._folder / "body.json").write_text(json.dumps(body))
        options = ("-H", "Content-Type: application/json", "--data-binary", "@body.json", *options)
        return self.get(path, "-H", f"x-api-key: {self._key}", *options)

    def get(self, path: str, *options: str) -> Answer:
        facts = "%{http_code} %{num_redirects} %{content_type}"
        done = subprocess.run(
            ["curl", "-q", "-sS", "--noproxy", "*", "-o", "answer", "-w", facts, *options, self._url + path],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        status, redirects, content_type = done.stdout.split(" ", 2)
        return Answer(int(status), content_type, int(redirects), (self._folder / "answer").read_bytes())


@pytest.fixture
def curl(server: ServerProcess, api_key, tmp_path) -> Curl:
    assert shutil.which("curl"), "curl is needed; see .ci/apt-packages.txt"
    return Curl(server.url, api_key, tmp_path)


# --http2 offers an upgrade, as Java's client does; the body must not get lost over it.
@pytest.mark.parametrize("options", [[], ["--http2"], ["--http1.0"], ["-H", "Expect: 100-continue"]])
def test_v1_saves_a_picture(curl, small, options):
    answer = curl.post("/v1/flux-pulid", small, *options)
    assert (answer.status, answer.content_type) == (200, "image/webp")
    assert form_and_size(answer.body) == WEBP_256


def test_a_body_without_a_json_content_type_is_taken_where_it_is_json(curl, small):
    answer = curl.post("/v1/flux-pulid", small, "-H", "Content-Type:")
    assert answer.status == 200


def test_a_trailing_slash_is_no_redirect(curl, small):
    answer = curl.post("/v1/flux-pulid/", small, "-L")
    assert (answer.status, answer.redirects) == (200, 0)


def test_a_job_and_its_picture_without_a_key(curl, server, api_key, small):
    key = ["-H", f"x-api-key: {api_key}"]
    job = json.loads(curl.post("/v2/flux-pulid", small).body)
    status_path, result_path = (job[name].removeprefix(server.url) for name in ("status_url", "response_url"))
    wait_until(lambda: json.loads(curl.get(status_path, *key).body)["status"] == "COMPLETED", 60)
    result = json.loads(curl.get(result_path, *key).body)
    picture = curl.get(result["output"].removeprefix(server.url))
    assert (picture.status, picture.content_type) == (200, "image/webp")
    assert form_and_size(picture.body) == WEBP_256


def test_a_missing_key_is_401_in_json(curl):
    answer = curl.get("/v1/get-user-credits")
    assert (answer.status, answer.content_type) == (401, "application/json")
    assert set(json.loads(answer.body)) >= {"error"}
