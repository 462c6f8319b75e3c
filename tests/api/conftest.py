"""Real servers on free ports: uvicorn in a thread, jobs on disk, a scripted engine in a worker process."""

from __future__ import annotations

import base64
import http.server
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import uvicorn
from PIL import Image

from fakes import PATIENCE_S, Script, flat_picture
from server.app import create_app
from server.cli.connections import MAX_HEAD_BYTES, LimitedConnection
from server.settings import Settings


def png(height: int = 48, width: int = 64) -> bytes:
    file = BytesIO()
    Image.fromarray(flat_picture(height, width, (200, 120, 90))).save(file, "PNG")
    return file.getvalue()


PHOTO = base64.b64encode(png()).decode()
SMALL = {"main_face_image": PHOTO, "prompt": "portrait", "width": 256, "height": 256, "num_steps": 1}


class LiveServer:
    """A running server, the script of its engine and a client that keeps connections open."""

    def __init__(self, engine: Script, port: int, app, data_dir: Path) -> None:
        self.engine = engine
        self.port = port
        self.app = app
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def body(self, **parameters) -> dict:
        """A request with a photo and a prompt unless the test gives its own."""
        return SMALL | parameters

    def paint(self, path: str = "/v1/flux-pulid", headers=None, **parameters) -> httpx.Response:
        """POST it to v1."""
        return self.client.post(path, json=self.body(**parameters), headers=headers)

    def submit(self, headers=None, **parameters) -> httpx.Response:
        """The same to v2."""
        return self.paint("/v2/flux-pulid", headers, **parameters)

    def status(self, job_id: str, headers=None) -> httpx.Response:
        return self.client.get(f"/v2/requests/{job_id}/status", headers=headers)

    def result(self, job_id: str, headers=None) -> httpx.Response:
        return self.client.get(f"/v2/requests/{job_id}", headers=headers)

    def wait_for_status(self, job_id: str, *words: str, headers=None) -> dict:
        """The status body once the job stands at one of these words."""
        self.wait_until(lambda: self.status(job_id, headers).json()["status"] in words)
        return self.status(job_id, headers).json()

    def finished(self, headers=None, **parameters) -> dict:
        """Submit to v2 and poll; the result's body."""
        job_id = self.submit(headers, **parameters).json()["request_id"]
        self.wait_for_status(job_id, "COMPLETED", "FAILED", headers=headers)
        return self.result(job_id, headers).json()

    @contextmanager
    def broken(self) -> Iterator[None]:
        """For a while, a fault in every route that knows settings."""
        settings, self.app.state.settings = self.app.state.settings, None
        yield
        self.app.state.settings = settings

    @property
    def unfinished(self) -> int:
        """Jobs of callers without a key."""
        return self.app.state.service.unfinished_of("")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.005)


@contextmanager
def running(
    *,
    ready: bool = True,
    fetch_photo=None,
    script: dict | None = None,
    devices: tuple[str, ...] = ("none",),
    **settings,
) -> Iterator[LiveServer]:
    """A server with these settings. `script`: how its engine behaves (see fakes.Script)."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        (Path(folder) / "script").mkdir()
        engine = Script(Path(folder) / "script", **(script or {}))
        app = create_app(
            Settings(port=0, data_dir=data_dir, **settings),
            create_engine=engine,
            devices=devices,
            fetch_photo=fetch_photo,
        )
        with serving(app) as port:
            live = LiveServer(engine, port, app, data_dir)
            try:
                if ready:
                    live.wait_until(lambda: live.client.get("/ready").status_code == 200)
                yield live
            finally:
                live.client.close()
                engine.open_gate()


@contextmanager
def serving(app) -> Iterator[int]:
    """Run the app in a thread, with the connections it has in production; yields its port."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            http=LimitedConnection,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.002)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def run_server():
    """`with run_server(setting=value) as server:`, for what the shared ones below cannot show."""
    return running


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server without keys, whose engine answers at once. Shared by all tests, like the next two."""
    with running() as live:
        yield live


@pytest.fixture(scope="session")
def keyed_server() -> Iterator[LiveServer]:
    """A server with the keys of alice and bob."""
    with running(api_keys=("alice:alice-key", "bob:bob-key"), credits=77) as live:
        yield live


@pytest.fixture(scope="session")
def _gated_server() -> Iterator[LiveServer]:
    with running(script={"gated": True}) as live:
        yield live


@pytest.fixture
def gated(_gated_server) -> Iterator[LiveServer]:
    """A server whose engine waits for the test before each step; at rest, and with an empty journal."""
    engine = _gated_server.engine
    for trace in engine.folder.iterdir():
        trace.unlink()
    yield _gated_server
    engine.open_gate()
    _gated_server.wait_until(lambda: _gated_server.unfinished == 0)
    # A cancelled job has ended, but the engine may still be in its step. Once it has painted, it is not.
    assert _gated_server.paint().status_code == 200


@pytest.fixture(scope="session")
def photo() -> str:
    """The base64 text of a small picture."""
    return PHOTO


@pytest.fixture(scope="session")
def photo_bytes() -> bytes:
    return png()


@pytest.fixture(scope="session")
def photo_host(photo_bytes):
    """A real HTTP server on this machine that has a photo; yields its host:port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo_bytes)

        def log_message(self, *args):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever)
    thread.start()
    yield f"127.0.0.1:{host.server_port}"
    host.shutdown()
    thread.join()
    host.server_close()
