"""POST /v1/identities: what is answered, what is refused, and that nothing of a photo stays."""

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


def ask(server, path="/v1/identities", headers=None, **fields):
    return server.client.post(path, json=fields, headers=headers)


def embedded(response):
    """What the scripted engine was asked: photos, fusion, face."""
    assert response.status_code == 200, response.text
    return json.loads(response.content)[:3]


def assert_error(response, status, words=""):
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"]
    assert words in answer["error"]
    return answer


def test_the_answer_is_a_file_with_a_name(server):
    response = ask(server, main_face_image=photo_with(1))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="identity.safetensors"'
    assert len(response.headers["x-request-id"]) == 32
    assert embedded(response) == [1, "mean", {"index": 0, "order": "largest", "strict": False}]


def test_all_that_is_said_of_the_photos_reaches_the_engine(server):
    photos = [photo_with(2), photo_with(3)]
    choice = {"face_fusion": "concat", "face_index": "1", "face_order": "central", "strict_face": True}
    told = ["concat", {"index": 1, "order": "central", "strict": True}]
    assert embedded(ask(server, face_images=photos, **choice)) == [2, *told]
    both = ask(server, main_face_image=photo_with(1), face_images=photos, **choice)
    assert embedded(both) == [3, *told]
    assert both.content == ask(server, face_images=[photo_with(1), *photos], **choice).content
    assert both.content != ask(server, face_images=[*photos, photo_with(1)], **choice).content


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/identities?response_format=json", {}),
        ("/json/v1/identities", {}),
        ("/v1/identities", {"accept": "application/json"}),
    ],
)
def test_the_file_comes_in_json_where_that_is_asked_for(server, path, headers):
    response = ask(server, path, headers, main_face_image=photo_with(1))
    assert response.headers["content-type"] == "application/json"
    file = ask(server, "/v1/identities/?response_format=bytes", main_face_image=photo_with(1)).content
    assert base64.b64decode(response.json()["identity"]) == file
    assert list(response.json()) == ["identity"]


def test_bytes_are_the_form_unless_asked_whatever_v1_answers(run_server):
    with run_server(v1_response="json") as server:
        response = ask(server, main_face_image=photo_with(1))
        assert response.headers["content-type"] == "application/octet-stream"
        assert_error(ask(server, "/v1/identities?response_format=xml"), 400, "one of bytes, json")


def test_what_is_answered_can_be_sent_as_an_identity(server):
    made = ask(server, "/json/v1/identities", main_face_image=photo_with(1)).json()["identity"]
    assert server.paint(main_face_image=None, identity=made).status_code == 200
    [someone] = server.engine.last_request.people
    assert someone.identity == base64.b64decode(made)


def test_photos_may_come_in_every_form(run_server, photo_host):
    with run_server(fetch_allow=(photo_host,)) as server:
        address = f"http://{photo_host}/photo.png"
        assert_error(ask(server, main_face_image=address), 400, "No face found")  # but it was fetched
        assert embedded(ask(server, main_face_image=f"data:image/png;base64,{photo_with(1)}"))[0] == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "main_face_image is required."),
        (b'{"main_face_image": null, "face_images": null}', "main_face_image is required."),
        (b'{"main_face_image": 5}', "main_face_image must be an http(s) URL"),
        (b'{"main_face_image": "\\u0000"}', "NUL"),
        (b'{"main_face_image": "AAAA"}', "The photo is in no format"),
        (b'{"face_images": []}', "face_images must be a list of 1 to 8 photos."),
        (b'{"face_images": ["A", 5]}', "face_images[1] must be an http(s) URL"),
        (b'{"face_images": ["A", "B", "C", "D", "E", "F", "G", "H"], "main_face_image": "A"}', "8 photos"),
        (b'{"main_face_image": "A", "face_fusion": "sum"}', "face_fusion must be one of mean, concat."),
        (b'{"main_face_image": "A", "face_index": -1}', "face_index must be a whole number"),
        (b'{"main_face_image": "A", "face_order": "x"}', "face_order must be one of"),
        (b'{"main_face_image": "A", "strict_face": "x"}', "strict_face must be true or false."),
    ],
    ids=range(14),
)
def test_what_is_no_question_is_refused(server, body, words):
    headers = {"content-type": "application/json"}
    assert_error(server.client.post("/v1/identities", content=body, headers=headers), 400, words)


def test_a_photo_that_is_refused_is_named_where_there_are_several(server):
    error = assert_error(ask(server, face_images=[photo_with(1), "AAAA"]), 400)["error"]
    assert error.startswith("face_images[1]: The photo is in no format")


def test_photos_without_a_face_are_400(server):
    assert_error(ask(server, face_images=[photo_with(1), photo_with(0)]), 400, "No face found.")


def test_another_content_type_is_406_and_a_large_body_413(run_server):
    with run_server(max_body_mb=0.01) as server:
        assert_error(server.client.post("/v1/identities", data={"main_face_image": "AAAA"}), 406)
        assert_error(ask(server, main_face_image="A" * 20_000), 413)


def test_a_key_is_needed_and_its_budget_is_spent(run_server):
    with run_server(api_keys=("alice:alice-key",), rate_limit=1) as server:
        assert_error(ask(server, main_face_image=photo_with(1)), 401)
        done = ask(server, headers=ALICE, main_face_image=photo_with(1))
        assert done.headers["x-rate-limit-remaining"] == "0"
        assert_error(ask(server, headers=ALICE, main_face_image=photo_with(1)), 429)


@pytest.mark.parametrize(("order", "status"), [("oom", 503), ("raise", 500), ("crash", 503)])
def test_a_fault_over_a_photo_is_an_error_of_this_call_alone(run_server, order, status):
    with run_server() as server:
        assert_error(ask(server, main_face_image=photo_with(1, order)), status)
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert ask(server, main_face_image=photo_with(1)).status_code == 200


def test_each_photo_takes_one_of_eight_places_faces_and_identities_together(run_server):
    with run_server(v1_timeout_s=2) as server, ThreadPoolExecutor(2) as pool:
        slow = photo_with(1, "stall")
        stalled = [
            pool.submit(ask, server, face_images=[slow] * 5),
            pool.submit(ask, server, "/v1/faces", image=slow),
        ]
        server.wait_until(lambda: len(server.app.state.service._runner.questions._open) == 2)
        assert_error(ask(server, face_images=[photo_with(1)] * 3), 429, "8 photos")
        assert_error(ask(server, face_images=[photo_with(1)] * 2), 504)  # there is room, behind the others
        for answer in stalled:
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
                ask(server, face_images=[photo_with(1, order)] * 2)
        finally:
            stop.set()
            watcher.join()
        assert [extra for one in seen for extra in set(one) - set(files)] == []


def test_the_published_schema_describes_the_call(server):
    operation = server.client.get("/openapi.json").json()["paths"]["/v1/identities"]["post"]
    statuses = {"200", "400", "401", "406", "413", "429", "500", "503", "504"}
    assert set(operation["responses"]) == statuses
    assert set(operation["responses"]["200"]["content"]) == {"application/octet-stream", "application/json"}
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["anyOf"] == [{"required": ["main_face_image"]}, {"required": ["face_images"]}]
