"""Real servers on free ports: uvicorn in a thread, an app around a scripted engine."""

from __future__ import annotations

import base64
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import httpx
import pytest
import uvicorn
from PIL import Image

from fakes import PATIENCE_S, ScriptedEngine, flat_picture
from server.app import create_app
from server.settings import Settings


def png(height: int = 48, width: int = 64) -> bytes:
    file = BytesIO()
    Image.fromarray(flat_picture(height, width, (200, 120, 90))).save(file, "PNG")
    return file.getvalue()


class LiveServer:
    """A running server, its engine and a client that keeps connections open."""

    def __init__(self, engine: ScriptedEngine, port: int, app) -> None:
        self.engine = engine
        self.port = port
        self.app = app
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)

    def paint(self, path: str = "/v1/flux-pulid", **parameters) -> httpx.Response:
        """POST with a photo and a prompt unless the test gives its own."""
        body = {"main_face_image": PHOTO, "prompt": "portrait", "width": 256, "height": 256, "num_steps": 1}
        return self.client.post(path, json=body | parameters)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.005)


PHOTO = base64.b64encode(png()).decode()


@contextmanager
def running(
    engine: ScriptedEngine | None = None,
    *,
    create_engine=None,
    ready: bool = True,
    fetch_photo=None,
    **settings,
) -> Iterator[LiveServer]:
    engine = engine or ScriptedEngine()
    app = create_app(
        Settings(port=0, **settings), create_engine=create_engine or (lambda: engine), fetch_photo=fetch_photo
    )
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.002)
    live = LiveServer(engine, server.servers[0].sockets[0].getsockname()[1], app)
    try:
        if ready:
            live.wait_until(lambda: live.client.get("/ready").status_code == 200)
        yield live
    finally:
        live.client.close()
        server.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture(scope="session")
def run_server():
    """`with run_server(engine, setting=value) as server:`"""
    return running


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """One server for a whole file; its engine answers at once."""
    with running() as live:
        yield live


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
