"""POST /v1/faces: what is answered, what is refused, and that nothing of a photo stays."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from PIL import Image

from fakes import photo_of

ALICE = {"x-api-key": "alice-key"}


def photo_with(faces, order=None):
    """The base64 text of a photo in which so many faces are found."""
    file = BytesIO()
    Image.fromarray(photo_of(faces, order)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def ask(server, image, path="/v1/faces", headers=None, **more):
    return server.client.post(path, json={"image": image, **more}, headers=headers)


def assert_error(response, status, words=""):
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"]
    assert words in answer["error"]
    return answer


def test_the_faces_are_answered_as_fractions_of_the_photo(server):
    response = ask(server, photo_with(2))
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32
    assert response.json() == {
        "faces": [
            {"index": 0, "box": [0.0, 0.25, 0.125, 0.5], "score": 0.9},
            {"index": 1, "box": [0.125, 0.25, 0.25, 0.5], "score": 0.8375},
        ],
        "width": 64,
        "height": 48,
    }


@pytest.mark.parametrize("path", ["/v1/faces/", "/json/v1/faces"])
def test_the_other_addresses_answer_the_same(server, path):
    assert ask(server, photo_with(1), path).json() == ask(server, photo_with(1)).json()


def test_a_photo_without_a_face_has_an_empty_list(server):
    response = ask(server, photo_with(0))
    assert (response.status_code, response.json()["faces"]) == (200, [])


def test_a_photo_may_come_as_a_data_uri_or_from_an_address(run_server, photo_host):
    with run_server(fetch_allow=(photo_host,)) as server:
        assert ask(server, f"data:image/png;base64,{photo_with(3)}").json()["width"] == 64
        assert ask(server, f"http://{photo_host}/photo.png").json()["height"] == 48


def test_the_rules_for_addresses_are_those_of_v1(server, photo_host):
    refusals = [ask(server, f"http://{photo_host}/x"), server.paint(main_face_image=f"http://{photo_host}/x")]
    assert {response.status_code for response in refusals} == {400}
    assert refusals[0].json()["error"] == refusals[1].json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"[" * 100_001, 400, "too many parts"),
        (b"{}", 400, "image is required."),
        (b'{"image": null}', 400, "image is required."),
        (b'{"image": 5}', 400, "image must be an http(s) URL"),
        (b'{"image": ""}', 400, "image must be an http(s) URL"),
        (b'{"image": "\\u0000"}', 400, "NUL"),
        (b'{"image": "\\ud800"}', 400, "image must be"),
        (b'{"image": "AA=A"}', 400, "The photo is not readable"),
        (b'{"image": "AAAA"}', 400, "photo"),
    ],
    ids=range(11),
)
def test_what_is_no_question_is_refused(server, body, status, words):
    response = server.client.post("/v1/faces", content=body, headers={"content-type": "application/json"})
    assert_error(response, status, words)


def test_unknown_fields_are_ignored(server):
    assert ask(server, photo_with(1), prompt="p").status_code == 200


def test_another_content_type_is_406_and_a_large_body_413(run_server):
    with run_server(max_body_mb=0.01) as server:
        assert_error(server.client.post("/v1/faces", data={"image": "AAAA"}), 406)
        assert_error(ask(server, "A" * 20_000), 413)


def test_a_file_above_the_limit_and_a_picture_above_it_are_refused(run_server):
    with run_server(fetch_max_mb=0.00005, max_image_mp=25) as server:
        assert_error(ask(server, photo_with(1)), 400, "larger than")
    with run_server(max_image_mp=0.001) as server:
        assert_error(ask(server, photo_with(1)), 400)


def test_a_key_is_needed_and_its_budget_is_spent(run_server):
    with run_server(api_keys=("alice:alice-key",), rate_limit=2) as server:
        assert_error(ask(server, photo_with(1)), 401)
        left = [ask(server, photo_with(1), headers=ALICE).headers["x-rate-limit-remaining"] for _ in range(2)]
        assert left == ["1", "0"]
        refusal = ask(server, photo_with(1), headers=ALICE)
        assert_error(refusal, 429)
        assert int(refusal.headers["retry-after"]) > 0


@pytest.mark.parametrize(("order", "status"), [("oom", 503), ("raise", 500)])
def test_a_fault_over_a_photo_is_an_error_of_this_call_alone(server, order, status):
    assert_error(ask(server, photo_with(1, order)), status)
    assert ask(server, photo_with(1)).status_code == 200
    assert server.paint().status_code == 200


@pytest.mark.parametrize("order", ["crash", "lose the device"])
def test_a_worker_that_dies_over_a_photo_is_503_at_once_and_comes_back(run_server, order):
    with run_server() as server:
        response = ask(server, photo_with(1, order))
        assert_error(response, 503, "while it looked at the photo")
        assert "retry-after" in response.headers
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert ask(server, photo_with(1)).status_code == 200
        assert len(server.engine.pids) == 2


def test_while_the_engine_loads_the_answer_is_503(run_server):
    with run_server(ready=False, script={"slow_to_load": True}) as server:
        assert_error(ask(server, photo_with(1)), 503, "loading")
        server.engine.let_load()
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert ask(server, photo_with(1)).status_code == 200


def test_one_photo_more_than_eight_is_429_and_a_slow_one_504(run_server):
    with run_server(v1_timeout_s=2) as server, ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(ask, server, photo_with(1, "stall")) for _ in range(8)]
        server.wait_until(lambda: len(server.app.state.service._runner.questions._open) == 8)
        refusal = ask(server, photo_with(1))
        assert_error(refusal, 429, "8 photos")
        assert "retry-after" in refusal.headers
        for answer in slow:
            assert_error(answer.result(), 504, "within 2 seconds")


def test_nothing_of_a_photo_stays_on_disk(run_server):
    with run_server() as server:
        files = sorted(server.data_dir.rglob("*"))
        seen = []
        stop = threading.Event()

        def look():
            while not stop.is_set():
                seen.append(sorted(server.data_dir.rglob("*")))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            for order in (None, None, "raise"):
                ask(server, photo_with(2, order))
        finally:
            stop.set()
            watcher.join()
        assert [extra for one in seen for extra in set(one) - set(files)] == []


def test_the_published_schema_describes_the_call(server):
    operation = server.client.get("/openapi.json").json()["paths"]["/v1/faces"]["post"]
    statuses = {"200", "400", "401", "406", "413", "429", "500", "503", "504"}
    assert set(operation["responses"]) == statuses
    body = operation["requestBody"]["content"]["application/json"]
    assert body["schema"]["required"] == ["image"]
    assert json.dumps(body["example"]) == '{"image": "https://example.com/face.jpg"}'
