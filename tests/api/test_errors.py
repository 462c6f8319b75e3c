"""Every error leaves the server in one form, with its status, and tells nothing it should not."""

import json
import re
import socket
import sqlite3
import threading
from contextlib import ExitStack, closing

import pytest

import fakes
from fakes import PATIENCE_S
from pulid.errors import DeviceLost, PulidError, SetupError
from server.app import BODIES_AT_ONCE
from server.errors import STATUS, status_of
from server.jobs.job import LeaseLost

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


@pytest.mark.parametrize(
    "path",
    [
        *("/page", "/v1", "/v1/other", "/v1/flux-pulid/x", "/v1//flux-pulid", "/v1/flux-pulid//", "/v2"),
        *("/json", "/json/", "/json/json/v1/flux-pulid", "/jsonv1/flux-pulid", "/v2/requests", "/redoc"),
        *("/outputs", "/outputs/", "/outputs/x", "/docs/x/docs.js", "/%2e%2e/etc/passwd"),
        "/v2/flux-pulid/" + "x" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_address_is_404(server, path, method):
    assert_error(server.client.request(method, path), 404)


@pytest.mark.parametrize("prefix", ["", "/json"])
@pytest.mark.parametrize("suffix", ["", "/"])
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/flux-pulid", "POST"),
        ("/v2/flux-pulid", "POST"),
        ("/v2/requests/0", "GET, DELETE"),
        ("/v1/requests/0", "GET"),
        ("/v2/requests/0/status", "GET"),
        ("/v2/requests/0/events", "GET"),
        ("/outputs/0/0.webp", "GET, HEAD"),
        ("/health", "GET"),
    ],
)
def test_a_wrong_method_is_405_with_all_that_are_right(server, prefix, suffix, path, methods):
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "PROPFIND"} - set(methods.split(", ")):
        response = server.client.request(method, prefix + path + suffix)
        assert_error(response, 405)
        assert response.headers["allow"] == methods


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
        sock.sendall(b"POST /v1/flux-pulid HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_at_the_limit_is_read(small_server):
    assert_error(post(small_server, b" " * 10_000), 400)


def announced(server):
    """A call that has announced a body of the largest size, and what it hears before it sends any."""
    call = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    head = "POST /v1/flux-pulid HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
    call.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
    return call, call.recv(12).decode().removeprefix("HTTP/1.1 ")


def test_bodies_that_are_read_at_once_have_a_limit_and_beyond_it_is_429_before_they_come(run_server):
    with run_server(max_body_mb=0.1) as server, ExitStack() as open_calls:
        for _ in range(BODIES_AT_ONCE):
            call, heard = announced(server)
            open_calls.enter_context(call)
            assert heard == "100"
        late, heard = announced(server)
        late.close()
        assert heard == "429"
        for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
            for body in (b"{}", iter([b"{", b"}"])):
                refusal = server.client.post(path, content=body)
                assert_error(refusal, 429, "as many requests as it can")
                assert int(refusal.headers["retry-after"]) > 0
        call.close()
        server.wait_until(lambda: server.paint().status_code == 200)
        assert server.client.post("/v1/flux-pulid", content=iter([b"{}"])).status_code == 400


def test_who_waits_for_a_picture_takes_no_room_from_bodies(run_server):
    with run_server(script={"gated": True}, max_body_mb=0.0005, max_queued_jobs=100) as server:
        callers = [threading.Thread(target=server.paint) for _ in range(2 * BODIES_AT_ONCE)]
        for caller in callers:
            caller.start()
        server.wait_until(lambda: server.unfinished == len(callers))
        server.engine.open_gate()
        for caller in callers:
            caller.join(PATIENCE_S)
        assert len(server.engine.admitted) == len(callers)


def test_a_photo_that_was_sent_has_the_limit_of_one_that_is_fetched(run_server, photo_bytes):
    limit = len(photo_bytes) / 1_000_000
    with run_server(fetch_max_mb=limit) as server:
        assert server.paint().status_code == 200
    with run_server(fetch_max_mb=limit / 2) as server:
        assert_error(server.paint(), 400, "The photo is larger than")


def test_a_database_that_another_program_holds_is_503_and_says_when_to_come_back(run_server, monkeypatch):
    monkeypatch.setattr("server.jobs.store._BUSY_S", 0.05)
    with run_server() as server:
        with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
                refusal = server.paint(path)
                assert_error(refusal, 503, "data folder cannot be written")
                assert int(refusal.headers["retry-after"]) > 0
            unready = server.client.get("/ready")
            assert (unready.status_code, "data folder" in unready.json()["reason"]) == (503, True)
        assert server.paint().status_code == 200
        assert server.client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        ("no face", 400, "No face found"),
        ("raise at admission", 500, "fault"),
        ("raise at step 1", 500, "fault"),
        ("raise while preparing", 500, "fault"),
        ("oom at step 1", 503, "out of memory"),
        ("oom while preparing", 503, "out of memory"),
    ],
)
def test_an_engines_error_ends_its_own_job_and_the_next_one_works(server, prompt, status, words):
    response = server.paint(prompt=prompt)
    assert_error(response, status, words)
    assert fakes.SECRET not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert server.paint(prompt="fine").status_code == 200


def test_a_fault_of_the_server_itself_is_500_in_the_same_form(run_server):
    async def broken(url):
        raise RuntimeError(SECRET)

    with run_server(fetch_photo=broken) as server:
        assert_error(server.paint(main_face_image=f"https://{SECRET}.example/"), 500)
        assert server.paint().status_code == 200


def test_a_fault_in_a_route_is_500_in_the_same_form(server):
    with server.broken():
        assert_error(server.paint(prompt=SECRET), 500, "this request id")
        assert server.client.get("/health").status_code == 200


def test_a_full_queue_is_429_and_says_when_to_come_back(run_server):
    with run_server(script={"gated": True}, max_queued_jobs=2) as server:
        accepted = [server.submit().json()["request_id"]]
        assert server.engine.wait_for(lambda: len(server.engine.admitted) == 1)
        while (answer := server.submit()).status_code == 200:
            accepted.append(answer.json()["request_id"])
            assert len(accepted) < 10
        assert len(accepted) >= 3, "the one that runs, and two that wait"
        for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
            refusal = server.paint(path)
            assert_error(refusal, 429, "2")
            assert int(refusal.headers["retry-after"]) > 0
            assert refusal.headers["x-rate-limit-reset-at-utc"].endswith("+00:00")
        server.engine.open_gate()
        for job_id in accepted:
            server.wait_for_status(job_id, "COMPLETED")


def test_a_v1_call_that_takes_too_long_is_504_whether_it_runs_or_waits(run_server):
    with run_server(script={"gated": True}, v1_timeout_s=0.8) as server:
        engine = server.engine
        first = threading.Thread(target=server.submit)  # v2 has a limit of its own
        first.start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        assert_error(server.paint(prompt="never begun"), 504, "0.8 seconds")
        engine.run_steps(1)
        first.join(PATIENCE_S)
        assert_error(server.paint(prompt="begun", num_steps=20), 504, "0.8 seconds")
        engine.open_gate()
        assert engine.wait_for(lambda: len(engine.cancelled) == 1)
        assert server.paint(prompt="next").status_code == 200
        assert [request.prompt for request in engine.admitted.values()] == ["portrait", "begun", "next"]


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_error_a_caller_can_meet_has_its_status():
    # The root has no instances, a lost device ends its worker, never a job, and a lost lease no job of ours.
    unmet = subclasses(SetupError) | {PulidError, DeviceLost, LeaseLost}
    met = {cls.code for cls in subclasses(PulidError) - unmet}
    assert len(met) > 15
    assert met == STATUS.keys()


def test_an_unknown_code_is_our_own_fault():
    assert status_of("no such code") == status_of(None) == 500
