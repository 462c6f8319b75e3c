"""One connection: heads that are too large or too slow, bodies that do not come, what is no HTTP."""

import json
import re
import socket
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI, Request

from fakes import PATIENCE_S
from server.cli import connections
from server.cli.http_server import uvicorn_config

SHORT_S = 0.3  # in place of the limits of a real server


@pytest.fixture(scope="module")
def port():
    """A small app on a real socket, on connections that have little patience."""
    app = FastAPI()

    @app.get("/")
    async def root():
        return "ok"

    @app.post("/length")
    async def length(request: Request):
        return len(await request.body())

    @app.get("/slow")
    def slow():
        time.sleep(2.5 * SHORT_S)
        return "done"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_PATIENCE_S", {"head": SHORT_S, "body": SHORT_S})
        server = uvicorn.Server(uvicorn_config(app))
        server.config.port = 0
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.002)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture
def client(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        yield client


def status_of(answer):
    return int(answer.split()[1])


def rest_of(client):
    """Everything until the server closes the connection."""
    received = b""
    while chunk := client.recv(65_536):
        received += chunk
    return received


def trickle(client, text, seconds):
    """Send it piece by piece, again and again, for so long or until the server hangs up."""
    started = time.monotonic()
    try:
        while time.monotonic() - started < seconds:
            client.sendall(text)
            time.sleep(0.02)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return time.monotonic() - started


def is_closed(client):
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "nonsense",
    [
        b"zebra-in-a-tutu\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",  # a client that expects TLS
    ],
)
def test_what_is_no_http_is_400_in_the_form_of_all_errors(client, nonsense):
    client.sendall(nonsense)
    head, _, body = rest_of(client).partition(b"\r\n\r\n")
    assert status_of(head) == 400
    assert b"content-type: application/json" in head
    answer = json.loads(body)
    assert set(answer) == {"error", "request_id"}
    assert re.fullmatch(r"[0-9a-f]{32}", answer["request_id"])
    assert f"x-request-id: {answer['request_id']}".encode() in head
    assert "zebra" not in answer["error"]


def test_nonsense_after_a_request_closes_the_connection_and_harms_nobody(client, port):
    client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nzebra\r\n\r\n")
    rest_of(client)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as another:
        another.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(another.recv(1000)) == 200


def test_a_head_without_end_is_refused(client):
    endless = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 64_000_000
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # after what the kernel's buffers take
        client.sendall(endless)


def test_a_head_of_ordinary_size_is_read(client):
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 30_000 + b"\r\n\r\n")
    assert status_of(client.recv(1000)) == 200


def test_a_connection_that_says_nothing_is_closed(client):
    assert is_closed(client)


@pytest.mark.parametrize("piece", [b"a", b"\r\n"])
def test_a_head_that_trickles_in_is_given_up_however_often_a_byte_comes(client, piece):
    client.sendall(b"" if piece == b"\r\n" else b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert trickle(client, piece, PATIENCE_S) < 5 * SHORT_S


def test_the_same_holds_between_two_requests(client):
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status_of(client.recv(1000)) == 200
    assert trickle(client, b"\r\n", PATIENCE_S) < 5 * SHORT_S


@pytest.mark.parametrize("head", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_in_its_time_is_given_up(client, head):
    client.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    assert trickle(client, b"1\r\na\r\n", PATIENCE_S) < 5 * SHORT_S


def test_a_slow_answer_is_waited_for(client):
    client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"done" in client.recv(1000)


def test_a_connection_is_kept_between_requests_longer_than_a_head_may_take(client):
    for _ in range(2):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(client.recv(1000)) == 200
        time.sleep(1.5 * SHORT_S)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_body_of_a_call_that_offers_http2_is_kept(client, pieces):
    """As Java's client sends it by default, and `curl --http2`."""
    text = (
        b"POST /length HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\nhello"
    )
    for start in range(0, len(text), -(-len(text) // pieces)):
        client.sendall(text[start : start + -(-len(text) // pieces)])
        time.sleep(0.02)
    answer = client.recv(1000)
    assert status_of(answer) == 200
    assert answer.endswith(b"5")
