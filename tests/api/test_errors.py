"""Every error leaves the server in one form, with its status, and tells nothing it should not."""

import json
import re
import socket
import threading

import pytest

from fakes import PATIENCE_S, ScriptedEngine
from pulid.errors import Busy, EngineFailed, NoFaceFound, OutOfMemory

SECRET = "zebra-in-a-tutu"


def assert_error(response, status, words=""):
    """The envelope, for any status. Returns the text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert set(answer) <= {"error", "request_id", "fields", "reason"}
    assert re.fullmatch(r"[0-9a-f]{32}", answer["request_id"])
    assert answer["request_id"] == response.headers["x-request-id"]
    assert words in answer["error"]
    for leak in (SECRET, "Traceback", ".py", "site-packages", "credits"):
        assert leak not in response.text
    return answer["error"]


def post(server, content, **headers):
    return server.client.post("/v1/flux-pulid", content=content, headers=headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "zebra-in-a-tutu"',
        b"[]",
        b"null",
        b'"zebra-in-a-tutu"',
        b"3",
        b"\xff\xfe\x00",
        b'{"prompt": NaN}',
        b'{"seed": -Infinity}',
        b'{"seed": ' + b"9" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"main_face_image=zebra-in-a-tutu&prompt=p",
        b'{"a": [' + b"[]," * 400_000 + b"[]]}",
    ],
    ids=range(15),
)
def test_what_is_no_json_object_is_400(server, body):
    text = assert_error(post(server, body), 400)
    assert text.startswith("The body")


def test_a_wrong_field_is_400_and_does_not_repeat_the_value(server):
    response = server.paint(width=SECRET, output_format=SECRET)
    assert_error(response, 400, "width must be a whole number from 256 to 1536.")
    assert response.json()["fields"][1]["field"] == "output_format"


@pytest.mark.parametrize(
    "photo",
    [
        "no base64!",
        "ftp://host/photo.png",
        "file:///etc/passwd",
        "data:image/png,zebra-in-a-tutu",
        "data:image/png;base64,",
        "====",
        "   ",
        "AAAA",
        "c2VjcmV0" * 100,
        "A",
        "é" * 40,
    ],
)
def test_a_photo_that_cannot_be_read_is_400(server, photo):
    assert_error(server.paint(main_face_image=photo), 400)


def test_an_empty_photo_is_400_and_says_what_it_may_be(server):
    assert_error(server.paint(main_face_image=""), 400, "main_face_image must be an http(s) URL")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/other", "/v1/flux-pulid/x", "/v1//flux-pulid", "/docs"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_address_is_404(server, path, method):
    assert_error(server.client.request(method, path), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/v1/flux-pulid", "/v1/flux-pulid/"])
def test_a_wrong_method_is_405_with_allow(server, method, path):
    response = server.client.request(method, path)
    assert_error(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "image/png", "x"]
)
def test_another_content_type_is_406(server, content_type):
    response = post(server, json.dumps({"prompt": SECRET}), **{"content-type": content_type})
    assert_error(response, 406, "application/json")


@pytest.fixture(scope="module")
def small_server(run_server):
    with run_server(max_body_mb=0.01) as live:
        yield live


def test_a_declared_body_over_the_limit_is_413(small_server):
    assert_error(post(small_server, b" " * 10_001), 413, "0.01 MB")


def test_a_body_that_grows_over_the_limit_is_413(small_server):
    def chunks():
        for _ in range(20):
            yield b" " * 1_000

    assert_error(post(small_server, chunks()), 413)


def test_an_oversized_body_is_refused_before_it_has_come(small_server):
    with socket.create_connection(("127.0.0.1", small_server.port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"POST /v1/flux-pulid HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_at_the_limit_is_read(small_server):
    assert_error(post(small_server, b" " * 10_000), 400)


@pytest.fixture(scope="module")
def failing_server(run_server):
    """An engine that fails by prompt."""
    engine = ScriptedEngine()
    engine.fail_admit = {
        "no face": NoFaceFound(),
        "full": Busy("The device is full."),
        "admit breaks": RuntimeError(f"shape of {SECRET}"),
    }
    engine.fail_step = {"step breaks": RuntimeError(SECRET), "step fails": EngineFailed("The engine failed.")}
    engine.report_error = {"too large": OutOfMemory("The device is out of memory."), "late": NoFaceFound()}
    with run_server(engine) as live:
        yield live


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        ("no face", 400, "No face found"),
        ("late", 400, "No face found"),
        ("full", 429, "full"),
        ("admit breaks", 500, "internal fault"),
        ("step breaks", 500, "internal fault"),
        ("step fails", 500, "engine failed"),
        ("too large", 503, "out of memory"),
    ],
)
def test_an_engines_error_ends_its_own_job_and_the_next_one_works(failing_server, prompt, status, words):
    response = failing_server.paint(prompt=prompt)
    assert_error(response, status, words)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert failing_server.paint(prompt="fine").status_code == 200


def test_a_fault_of_the_server_itself_is_500_in_the_same_form(run_server):
    async def broken(url):
        raise RuntimeError(SECRET)

    with run_server(fetch_photo=broken) as server:
        assert_error(server.paint(main_face_image=f"https://{SECRET}.example/"), 500)
        assert server.paint().status_code == 200


def test_a_fault_in_a_route_is_500_in_the_same_form(run_server):
    with run_server() as server:
        server.app.state.settings = None
        assert_error(server.paint(prompt=SECRET), 500, "this request id")
        assert server.client.get("/health").status_code == 200


def test_a_full_queue_is_429_and_says_when_to_come_back(run_server):
    engine = ScriptedEngine(gated=True)
    with run_server(engine, max_queued_jobs=2) as server:
        answers = []

        def call():
            answers.append(server.paint().status_code)

        callers = [threading.Thread(target=call) for _ in range(3)]
        callers[0].start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        for caller in callers[1:]:
            caller.start()
        server.wait_until(lambda: len(server.app.state.service.unfinished) == 3)
        refusal = server.paint()
        assert_error(refusal, 429, "All 2 places")
        assert int(refusal.headers["retry-after"]) > 0
        assert refusal.headers["x-rate-limit-reset-at-utc"].endswith("+00:00")
        engine.open_gate()
        for caller in callers:
            caller.join(PATIENCE_S)
        assert answers == [200, 200, 200]


def test_a_v1_call_that_takes_too_long_is_504_and_its_job_is_dropped(run_server):
    engine = ScriptedEngine(gated=True)
    with run_server(engine, v1_timeout_s=0.8) as server:
        assert_error(server.paint(num_steps=20), 504, "0.8 seconds")
        engine.run_steps(1)
        assert engine.wait_for(lambda: len(engine.cancelled) == 1)
        engine.open_gate()
        assert server.paint().status_code == 200


def test_waiting_in_the_queue_counts_towards_the_time_limit(run_server):
    engine = ScriptedEngine(gated=True)
    with run_server(engine, v1_timeout_s=0.8) as server:
        first = threading.Thread(target=server.paint)
        first.start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        assert_error(server.paint(prompt="never begun"), 504)
        first.join(PATIENCE_S)
        engine.open_gate()
        assert [request.prompt for request in engine.admitted.values()] == ["portrait"]
