"""The job contract: submit, poll, fetch, cancel, delete, and the same call sent twice."""

import json
import re
import threading
from io import BytesIO

import httpx
import pytest
from PIL import Image

from fakes import PATIENCE_S

URLS = {"poll_url", "status_url", "response_url"}
SECONDS = {"inference_time", "queue_time", "total_time"}
NUL_AND_HALF_PAIRS = ["a\0b", "half \ud83d a pair", "\udc00"]


def get(url):
    return httpx.get(url, trust_env=False)


def failed_text(server, job_id):
    """The error of a job that FAILED, the same at both addresses and in the form of 5.2."""
    server.wait_for_status(job_id, "FAILED")
    status, result = server.status(job_id), server.result(job_id)
    assert status.status_code == result.status_code == 422
    assert status.json() == result.json()
    answer = status.json()
    of_fields = {"fields"} if answer["code"] == "invalid_parameters" else set()
    assert set(answer) == {"status", "error", "code", "metrics", "request_id"} | of_fields
    assert (answer["status"], answer["request_id"]) == ("FAILED", job_id)
    assert set(answer["metrics"]) == SECONDS
    return answer["error"]


# submit


def test_a_submit_answers_at_once_with_an_id_and_absolute_urls(gated):
    response = gated.submit()
    assert response.status_code == 200
    answer = response.json()
    job_id = answer["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", job_id)
    assert answer == {
        "request_id": job_id,
        "status": "QUEUED",
        "poll_url": f"{gated.url}/v1/requests/{job_id}",
        "status_url": f"{gated.url}/v2/requests/{job_id}/status",
        "response_url": f"{gated.url}/v2/requests/{job_id}",
    }
    assert all(get(answer[url]).status_code == 200 for url in URLS)


def test_urls_keep_the_json_mount_and_work_with_it(gated):
    answer = gated.paint("/json/v2/flux-pulid/").json()
    for url in URLS:
        assert answer[url].startswith(f"{gated.url}/json/v")
        assert get(answer[url]).json()["request_id"] == answer["request_id"]
    inner = get(answer["status_url"]).json()
    assert inner["response_url"] == answer["response_url"]


def test_urls_begin_with_the_public_url_where_there_is_one(run_server):
    with run_server(public_url="https://flux.example.com") as server:
        answer = server.submit().json()
        assert all(answer[url].startswith("https://flux.example.com/v") for url in URLS)
        server.wait_for_status(answer["request_id"], "COMPLETED")
        result = server.result(answer["request_id"]).json()
        assert result["output"].startswith("https://flux.example.com/outputs/")


def test_each_submit_is_a_new_job(server):
    ids = {server.submit(seed=1).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3


# status and result


def test_a_job_is_told_from_its_place_in_the_queue_to_its_picture(gated):
    first, second, third = (gated.submit(num_steps=3, seed=n).json()["request_id"] for n in (1, 2, 3))
    gated.engine.wait_for(lambda: len(gated.engine.admitted) == 1)
    waiting = gated.status(third)
    assert waiting.status_code == 200
    assert waiting.json() == {
        "status": "QUEUED",
        "request_id": third,
        "status_url": f"{gated.url}/v2/requests/{third}/status",
        "response_url": f"{gated.url}/v2/requests/{third}",
        "metrics": {},
        "queue_position": waiting.json()["queue_position"],
    }
    places = [gated.status(job_id).json()["queue_position"] for job_id in (second, third)]
    assert places == sorted(places)
    assert places[0] == 0

    gated.engine.run_steps(2)
    gated.wait_until(lambda: gated.status(first).json().get("progress", {}).get("step") == 2)
    running = gated.status(first)
    assert running.status_code == 200
    assert running.json() == {
        "status": "PROCESSING",
        "request_id": first,
        "status_url": f"{gated.url}/v2/requests/{first}/status",
        "response_url": f"{gated.url}/v2/requests/{first}",
        "metrics": {},
        "progress": {"step": 2, "num_steps": 3, "seconds_left": running.json()["progress"]["seconds_left"]},
    }
    assert running.json()["progress"]["seconds_left"] >= 0
    assert gated.result(first).json() == running.json(), "the result's address tells the status meanwhile"

    gated.engine.open_gate()
    for job_id in (first, second, third):
        done = gated.wait_for_status(job_id, "COMPLETED")
        assert set(done) == {"status", "request_id", "metrics"}
        assert set(done["metrics"]) == {*SECONDS, "cost", "remaining_credits"}
    assert [request.seed for request in gated.engine.admitted.values()] == [1, 2, 3]


def test_the_result_of_one_picture_is_a_url_in_a_string(server):
    result = server.finished(seed=720558, width=300, height=260, output_format="png")
    url = result["output"]
    assert re.fullmatch(rf"{server.url}/outputs/[0-9a-f]{{32}}/0\.png", url)
    picture = get(url)
    assert result == {
        "status": "COMPLETED",
        "request_id": result["request_id"],
        "error": None,
        "seed": 720558,
        "metrics": result["metrics"],
        "output": url,
        "images": [
            {
                "url": url,
                "content_type": "image/png",
                "width": 304,
                "height": 272,
                "file_name": "0.png",
                "file_size": len(picture.content),
            }
        ],
        "timings": {"inference": result["metrics"]["inference_time"]},
    }
    assert Image.open(BytesIO(picture.content)).size == (304, 272)


def test_the_metrics_add_up(server):
    metrics = server.finished(credits=5)["metrics"]
    assert metrics["total_time"] == pytest.approx(metrics["queue_time"] + metrics["inference_time"], abs=0.01)
    assert metrics["cost"] == 0.0
    assert metrics["remaining_credits"] == 1_000_000.0


def test_the_result_of_several_pictures_is_a_list_in_their_order(server):
    result = server.finished(num_outputs=3)
    assert result["output"] == [image["url"] for image in result["images"]]
    assert [image["file_name"] for image in result["images"]] == ["0.webp", "1.webp", "2.webp"]
    assert all(get(url).headers["content-type"] == "image/webp" for url in result["output"])


def test_the_result_is_at_its_older_address_too(server):
    result = server.finished()
    job_id = result["request_id"]
    for path in (f"/v1/requests/{job_id}", f"/v2/requests/{job_id}/", f"/json/v1/requests/{job_id}"):
        response = server.client.get(path)
        assert response.json() == result
        assert response.headers["cache-control"] == "no-store"


def test_v1_and_v2_paint_the_same_picture(server):
    asked = {"seed": 5, "output_format": "png", "prompt": "a knight"}
    assert get(server.finished(**asked)["output"]).content == server.paint(**asked).content


@pytest.mark.parametrize(
    "job_id", ["0" * 32, "x", "47411f11-0c6f-a4fe-05dc-b9ffed2c1962", "%00", "%ff%fe", "é"]
)
@pytest.mark.parametrize("path", ["/v2/requests/{}/status", "/v2/requests/{}", "/v1/requests/{}"])
def test_an_unknown_id_is_404(server, path, job_id):
    for method, address in (("GET", path), ("DELETE", "/v2/requests/{}"), ("GET", "/v2/requests/{}/events")):
        response = server.client.request(method, address.format(job_id))
        assert response.status_code == 404
        assert "no such request" in response.json()["error"]


# what goes wrong


def test_an_invalid_object_is_accepted_and_then_failed(server):
    response = server.submit(width=1, prompt=None)
    assert response.status_code == 200
    assert response.json()["status"] == "QUEUED"
    text = failed_text(server, response.json()["request_id"])
    assert text == "prompt is required. width must be a whole number from 256 to 1536."


@pytest.mark.parametrize(
    "asked",
    [
        {"width": 1},
        {"seed": "x"},
        {"prompt": 5},
        {"main_face_image": "AAAA"},
        {"main_face_image": "no base64!"},
        {"prompt": "no face"},
    ],
    ids=str,
)
def test_the_text_of_a_failure_is_the_one_of_v1(server, asked):
    job_id = server.submit(**asked).json()["request_id"]
    assert failed_text(server, job_id) == server.paint(**asked).json()["error"]


def test_a_failed_job_names_the_wrong_fields_as_v1_does(server):
    asked = {"width": 1, "num_steps": "many"}
    failed = server.finished(**asked)
    assert failed["code"] == "invalid_parameters"
    assert [wrong["field"] for wrong in failed["fields"]] == ["width", "num_steps"]
    assert failed["fields"] == server.paint(**asked).json()["fields"]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"prompt": "no face"}, "no_face"),
        ({"prompt": "several faces"}, "several_faces"),
        ({"main_face_image": "AAAA"}, "image_rejected"),
        ({"prompt": "raise at step 1, raise at step 1"}, "engine_failed"),
    ],
)
def test_a_failed_job_has_the_code_of_its_reason_and_no_fields_where_none_is_wrong(server, asked, code):
    failed = server.finished(**asked)
    assert failed["code"] == code
    assert "fields" not in failed


@pytest.mark.parametrize("value", NUL_AND_HALF_PAIRS)
@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "main_face_image"])
def test_nul_and_half_surrogate_pairs_fail_the_job_and_nothing_else(server, photo, name, value):
    body = json.dumps({"main_face_image": photo, "prompt": "p"} | {name: value})
    response = server.client.post("/v2/flux-pulid", content=body)
    assert response.status_code == 200
    assert failed_text(server, response.json()["request_id"]).startswith(f"{name} must")


@pytest.mark.parametrize("value", NUL_AND_HALF_PAIRS)
def test_nul_and_half_surrogate_pairs_in_unknown_fields_harm_nothing(server, photo, value):
    body = json.dumps({"main_face_image": photo, "prompt": "p", "num_steps": 1, "x": value, value: "x"})
    response = server.client.post("/v2/flux-pulid", content=body)
    server.wait_for_status(response.json()["request_id"], "COMPLETED")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused_at_submit(server, body):
    response = server.client.post("/v2/flux-pulid", content=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith("The body")


def test_another_content_type_is_refused_at_submit(server):
    response = server.client.post("/v2/flux-pulid", data={"prompt": "p"})
    assert response.status_code == 406


def test_a_strict_server_refuses_an_invalid_object_at_submit(run_server):
    with run_server(v2_strict=True) as server:
        response = server.submit(width=1)
        assert response.status_code == 400
        assert [problem["field"] for problem in response.json()["fields"]] == ["width"]
        assert server.submit().status_code == 200


def test_a_job_that_misses_its_deadline_is_failed(run_server):
    with run_server(script={"gated": True}, job_deadline_s=0.5) as server:
        running, waiting = (server.submit().json()["request_id"] for _ in range(2))
        for job_id in (running, waiting):
            assert "within 0.5 seconds" in failed_text(server, job_id)


def test_a_failed_job_has_a_time_in_the_queue(server):
    job_id = server.submit(prompt="no face").json()["request_id"]
    failed_text(server, job_id)
    metrics = server.status(job_id).json()["metrics"]
    assert metrics["inference_time"] == 0
    assert metrics["total_time"] == pytest.approx(metrics["queue_time"], abs=0.002)


# cancel and delete


def test_deleting_a_running_job_cancels_it_within_a_step(gated):
    job_id = gated.submit(num_steps=20).json()["request_id"]
    gated.engine.wait_for(lambda: len(gated.engine.admitted) == 1)
    gated.engine.run_steps(2)
    gated.engine.wait_for(lambda: 2 in gated.engine.steps.values())
    removed = gated.client.delete(f"/v2/requests/{job_id}")
    assert removed.status_code == 200
    assert removed.json() == {"request_id": job_id, "status": "FAILED", "deleted": False}
    assert failed_text(gated, job_id) == "The job was cancelled."
    gated.submit(prompt="next")
    assert gated.engine.wait_for(lambda: "next" in gated.engine.prepared)  # the cancel was read before it
    gated.engine.run_steps(1)
    assert gated.engine.wait_for(lambda: gated.engine.cancelled == [job_id])
    assert gated.engine.steps[job_id] <= 3
    gated.engine.open_gate()
    assert gated.paint().status_code == 200


def test_deleting_a_waiting_job_cancels_it_before_it_begins(gated):
    running, waiting = (gated.submit(prompt=word).json()["request_id"] for word in ("first", "second"))
    gated.engine.wait_for(lambda: len(gated.engine.admitted) == 1)
    assert gated.client.delete(f"/v2/requests/{waiting}").json()["status"] == "FAILED"
    gated.engine.open_gate()
    gated.wait_for_status(running, "COMPLETED")
    assert [request.prompt for request in gated.engine.admitted.values()] == ["first"]


def test_deleting_a_finished_job_deletes_its_pictures(server):
    result = server.finished(num_outputs=2)
    job_id = result["request_id"]
    assert get(result["output"][1]).status_code == 200
    removed = server.client.delete(f"/json/v2/requests/{job_id}/")
    assert removed.json() == {"request_id": job_id, "status": "COMPLETED", "deleted": True}
    for response in (server.status(job_id), server.result(job_id), *map(get, result["output"])):
        assert response.status_code == 404
    assert server.client.delete(f"/v2/requests/{job_id}").status_code == 404


def test_a_cancelled_job_can_be_deleted(gated):
    job_id = gated.submit().json()["request_id"]
    assert not gated.client.delete(f"/v2/requests/{job_id}").json()["deleted"]
    assert gated.client.delete(f"/v2/requests/{job_id}").json() == {
        "request_id": job_id,
        "status": "FAILED",
        "deleted": True,
    }
    assert gated.status(job_id).status_code == 404


def test_a_v1_call_whose_job_is_cancelled_by_another_call_is_409(gated):
    answers = []
    caller = threading.Thread(target=lambda: answers.append(gated.paint(num_steps=20)))
    caller.start()
    gated.engine.wait_for(lambda: len(gated.engine.admitted) == 1)
    [job_id] = gated.engine.admitted
    gated.client.delete(f"/v2/requests/{job_id}")
    caller.join(PATIENCE_S)
    assert answers[0].status_code == 409
    assert answers[0].json()["error"] == "The job was cancelled."
    assert answers[0].headers["x-request-id"] == job_id


# Idempotency-Key


def test_the_same_call_sent_again_is_the_same_job(server):
    headers = {"Idempotency-Key": "order-1"}
    first = server.submit(headers, seed=1).json()
    again = server.submit(headers, seed=1)
    assert again.status_code == 200
    assert again.json() | {"status": ""} == first | {"status": ""}
    server.wait_for_status(first["request_id"], "COMPLETED")
    assert server.submit(headers, seed=1).json()["status"] == "COMPLETED"
    assert list(server.engine.admitted).count(first["request_id"]) == 1
    assert server.submit({"Idempotency-Key": "order-2"}, seed=1).json()["request_id"] != first["request_id"]


def test_the_same_name_for_another_body_is_409(server):
    headers = {"Idempotency-Key": "order-3"}
    assert server.submit(headers, seed=1).status_code == 200
    refusal = server.submit(headers, seed=2)
    assert refusal.status_code == 409
    assert "Idempotency-Key" in refusal.json()["error"]


def test_an_invalid_call_sent_again_is_the_same_failed_job(server):
    headers = {"Idempotency-Key": "order-4"}
    ids = {server.submit(headers, width=1).json()["request_id"] for _ in range(2)}
    assert len(ids) == 1
    failed_text(server, ids.pop())


def test_a_deleted_job_frees_its_name(server):
    headers = {"Idempotency-Key": "order-5"}
    job_id = server.submit(headers, seed=1).json()["request_id"]
    server.wait_for_status(job_id, "COMPLETED")
    server.client.delete(f"/v2/requests/{job_id}")
    assert server.submit(headers, seed=2).json()["request_id"] != job_id


def again(server, key, **parameters):
    """The same call under the name "again"; its status and, if it was taken, its job."""
    response = server.submit({"Idempotency-Key": "again", "x-api-key": key}, **parameters)
    return response.status_code, response.json().get("request_id")


def test_the_same_call_again_is_answered_where_new_work_is_refused(run_server):
    keys = {"api_keys": ("a:a", "b:b")}
    with run_server(script={"gated": True}, rate_limit=1, max_queued_jobs=1, **keys) as server:
        first = again(server, "a")
        assert first[0] == 200
        assert again(server, "a") == first, "the minute of the key is used up"
        assert again(server, "a", seed=2)[0] == 409
        assert server.submit({"Idempotency-Key": "other", "x-api-key": "a"}).status_code == 429
        server.app.state.service.begin_drain()
        assert again(server, "a") == first
        assert again(server, "b")[0] == 503


def test_the_same_call_again_needs_no_place_of_its_key(run_server):
    with run_server(script={"gated": True}, concurrency_per_key=1) as server:
        first = again(server, "")
        assert first[0] == 200
        assert server.submit().status_code == 429
        assert again(server, "") == first


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 256])
def test_a_name_that_is_no_name_is_400(server, name):
    response = server.submit({"Idempotency-Key": name.encode("latin-1")})
    assert response.status_code == 400
    assert "1 to 255 visible ASCII characters" in response.json()["error"]
    assert response.json()["fields"][0]["field"] == "Idempotency-Key"


def test_the_longest_name_is_taken(server):
    assert server.submit({"Idempotency-Key": "x" * 255}).status_code == 200
