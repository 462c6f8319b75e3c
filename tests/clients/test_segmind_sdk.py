"""The stock Python SDK, as installed from PyPI, with nothing changed but its base URL and key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
import segmind
from segmind import InferenceFailed, SegmindClient, SegmindError

from live_server import ServerProcess, faceless, form_and_size

WEBP_256 = ("WEBP", (256, 256))


@pytest.fixture(scope="module")
def connect(server: ServerProcess, api_key: str) -> Iterator[Callable[..., SegmindClient]]:
    """Makes clients; the SDK has no way to close their connections."""
    made = []

    def make(base: str = "/v1", key: str = api_key) -> SegmindClient:
        made.append(SegmindClient(api_key=key, base_url=server.url + base))
        return made[-1]

    yield make
    for client in made:
        client._client.close()


@pytest.fixture(scope="module")
def client(connect) -> SegmindClient:
    return connect()


def download(url: str) -> bytes:
    """As the SDK's users do it: without a key."""
    return httpx.get(url, trust_env=False).raise_for_status().content


def test_this_is_the_version_the_contract_was_read_from():
    assert segmind.__version__ == "1.3.0"


def test_run_waits_for_a_job_and_returns_its_result(client, small):
    result = client.run("flux-pulid", **small)
    assert result["status"] == "COMPLETED"
    assert result["seed"] == small["seed"]
    assert form_and_size(download(result["output"])) == WEBP_256
    assert result["images"][0]["url"] == result["output"]


def test_run_sync_returns_the_bytes_of_the_same_picture(client, small):
    response = client.run_sync("flux-pulid", **small)
    assert response.headers["content-type"] == "image/webp"
    assert response.content == download(client.run("flux-pulid", **small)["output"])


def test_a_submitted_job_can_be_waited_for(client, small):
    job = client.submit_async("flux-pulid", **small)
    assert job.submit_response["status"] == "QUEUED"
    result = job.wait(timeout=60, interval=0.1)
    assert result["request_id"] == job.request_id
    assert job.status()["metrics"]["total_time"] >= result["metrics"]["inference_time"] > 0


def test_several_pictures_come_as_a_list(client, small):
    result = client.submit_async("flux-pulid", **small, num_outputs=2).wait(timeout=60, interval=0.1)
    assert [form_and_size(download(url)) for url in result["output"]] == [WEBP_256, WEBP_256]


def test_a_parameter_out_of_range_fails_the_job_and_the_text_names_it(client, small):
    job = client.submit_async("flux-pulid", **small | {"num_steps": 21})
    with pytest.raises(InferenceFailed) as failed:
        job.wait(timeout=60, interval=0.1)
    assert "num_steps" in failed.value.detail
    assert "20" in failed.value.detail


def test_a_photo_without_a_face_fails_the_job_in_words(client, small):
    job = client.submit_async("flux-pulid", **small | {"main_face_image": faceless()})
    with pytest.raises(InferenceFailed) as failed:
        job.wait(timeout=60, interval=0.1)
    assert "face" in failed.value.detail.lower()


def test_both_interfaces_tell_a_mistake_in_the_same_words(client, small):
    mistake = small | {"main_face_image": faceless()}
    with pytest.raises(SegmindError) as refused:
        client.run_sync("flux-pulid", **mistake)
    with pytest.raises(InferenceFailed) as failed:
        client.submit_async("flux-pulid", **mistake).wait(timeout=60, interval=0.1)
    assert refused.value.status == 400
    assert refused.value.detail == failed.value.detail


def test_the_base_url_alone_turns_the_answer_into_json(connect, small):
    client = connect("/json/v1")
    answer = client.run_sync("flux-pulid", **small).json()
    assert answer["status"] == "Success"
    assert answer["image_format"] == "webp"
    result = client.submit_async("flux-pulid", **small).wait(timeout=60, interval=0.1)
    assert "/json/v2/" not in result["output"]
    assert form_and_size(download(result["output"])) == WEBP_256


def test_a_wrong_key_is_told_as_401(connect, small):
    client = connect(key="SG_ffffffffffffffff")
    for call in (client.run, client.run_sync):
        with pytest.raises(SegmindError) as refused:
            call("flux-pulid", **small)
        assert refused.value.status == 401
        assert refused.value.detail


def test_the_credits_call_tests_a_key(client, connect):
    """The SDK's own method goes to a fixed host, so this is its request, sent here."""
    credits = client._request("GET", "/get-user-credits").json()
    assert credits["credits"] > 0
    assert credits["free-credits"] >= 0
    with pytest.raises(SegmindError):
        connect(key="SG_0")._request("GET", "/get-user-credits")
