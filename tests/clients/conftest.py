"""One real server on the tiny profile for all clients, with a key, and the photo hosts of the samples."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from live_server import PHOTOS, ServerProcess, live_server, portrait

KEY = "SG_0123456789abcdef"
SAMPLE_HOSTS = ("segmind-sd-models.s3.amazonaws.com", "example.com")  # of the photos in the samples


class PhotoHost(http.server.ThreadingHTTPServer):
    """Answers every path with a portrait, and remembers which hosts and paths it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _PhotoHandler)
        self.asked: list[str] = []


class _PhotoHandler(http.server.BaseHTTPRequestHandler):
    server: PhotoHost

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.headers['host']}{self.path}")
        photo = (PHOTOS / "ardern.jpg").read_bytes()
        self.send_response(200)
        self.send_header("content-type", "image/jpeg")
        self.send_header("content-length", str(len(photo)))
        self.end_headers()
        self.wfile.write(photo)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def photo_host() -> Iterator[PhotoHost]:
    with PhotoHost() as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield host
        host.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def photo_hosts(photo_host: PhotoHost) -> dict[str, str]:
    """Names in the world, and who answers for them."""
    return dict.fromkeys(SAMPLE_HOSTS, f"127.0.0.1:{photo_host.server_port}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, photo_hosts: dict[str, str]) -> Iterator[ServerProcess]:
    """A server process that must also end well."""
    with live_server(
        tmp_path_factory.mktemp("clients") / "data",
        profile="tiny",
        api_keys=f"tests:{KEY},samples:YOUR_API_KEY",
        photo_hosts=photo_hosts,
    ) as live:
        yield live


@pytest.fixture(scope="session")
def api_key() -> str:
    return KEY


@pytest.fixture(scope="session")
def small() -> dict[str, object]:
    """The smallest request there is; every answer to it is the same picture."""
    return {
        "main_face_image": portrait(),
        "prompt": "portrait of a woman",
        "width": 256,
        "height": 256,
        "num_steps": 1,
        "seed": 7,
    }


@pytest.fixture
def python_with(tmp_path: Path) -> Callable[[list[str]], Path]:
    """Makes an environment with these packages; its interpreter. Needs a package index."""

    def make(packages: list[str]) -> Path:
        venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
        python = tmp_path / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, timeout=300)
        return python

    return make


@pytest.fixture
def run_calls() -> Callable[[Path, str, dict[str, object]], dict[str, Any]]:
    """Runs code that reads JSON from its input; the JSON of its last line."""

    def run(python: Path, calls: str, told: dict[str, object]) -> dict[str, Any]:
        done = subprocess.run(
            [python, "-c", calls], input=json.dumps(told), capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run
