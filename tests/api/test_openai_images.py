"""The adapter `openai`: image generation in OpenAI's words, errors in OpenAI's form."""

import base64
import json
import time
from io import BytesIO

import httpx
import pytest
from PIL import Image

ADDRESS = "/v1/images/generations"
ALICE = {"authorization": "Bearer alice-key"}


@pytest.fixture(scope="module")
def server(run_server):
    with run_server(adapters=("openai",), api_keys=("alice:alice-key",)) as live:
        yield live


def generate(server, headers=ALICE, **fields):
    """With what a picture needs, and the fields that OpenAI's own client would send."""
    theirs = {"model": "flux-pulid", "user": "someone"}
    return server.paint(ADDRESS, headers, **theirs | fields)


def size_of(picture):
    with Image.open(BytesIO(picture)) as image:
        return image.size


def fetched(answer):
    """The pictures behind the links, fetched without a key."""
    return [httpx.get(image["url"], trust_env=False).content for image in answer["data"]]


def error_of(response, status):
    """What is in the envelope, which holds nothing else."""
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return error


# success


def test_links_lead_to_the_picture_that_v1_paints(server):
    response = generate(server, seed=7)
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"created", "data", "seed"}
    assert [list(image) for image in answer["data"]] == [["url"]]
    assert fetched(answer) == [server.paint(headers=ALICE, seed=7).content]


def test_base64_is_the_picture_that_v1_paints(server):
    answer = generate(server, seed=7, response_format="b64_json").json()
    assert [list(image) for image in answer["data"]] == [["b64_json"]]
    picture = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
    assert picture == server.paint(headers=ALICE, seed=7).content


def test_n_pictures_are_those_of_v1_in_their_order(server):
    answer = generate(server, seed=30, n=3).json()
    v1 = server.paint("/json/v1/flux-pulid", ALICE, seed=30, num_outputs=3).json()
    assert fetched(answer) == [base64.b64decode(picture) for picture in v1["images"]]
    assert answer["seed"] == 30


def test_size_compression_and_format_are_told_in_openai_s_words(server):
    theirs = {"size": "272x304", "output_compression": 33, "output_format": "jpeg"}
    ours = {"width": 272, "height": 304, "output_quality": 33, "output_format": "jpg"}
    sides = dict.fromkeys(("width", "height"))  # null: not given
    [picture] = fetched(generate(server, seed=3, **sides, **theirs).json())
    assert picture == server.paint(headers=ALICE, seed=3, **ours).content
    assert size_of(picture) == (272, 304)


def test_an_own_name_counts_where_both_are_given(server):
    answer = generate(server, n=3, num_outputs=2, size="512x512", width=256, height=288).json()
    assert [size_of(picture) for picture in fetched(answer)] == [(256, 288)] * 2


@pytest.mark.parametrize("size", ["auto", None])
def test_auto_is_the_size_of_v1(server, size):
    sides = dict.fromkeys(("width", "height"))
    [picture] = fetched(generate(server, size=size, **sides).json())
    assert size_of(picture) == (896, 1152)


def test_every_other_parameter_of_v1_is_taken(server):
    given = {"id_weight": 0.5, "true_cfg": 2, "start_step": 1, "negative_prompt": "blurry", "seed": 5}
    [picture] = fetched(generate(server, num_steps=2, **given).json())
    assert picture == server.paint(headers=ALICE, num_steps=2, **given).content


def test_the_answer_has_the_figures_of_v1_in_its_headers(server):
    response = generate(server, seed=11, n=2)
    assert response.headers["x-seed-value"] == "11"
    assert json.loads(response.headers["x-output-metadata"]) == {"height": 256, "width": 256, "samples": 2}
    assert response.headers["x-request-id"]


def test_likeness_is_told_where_it_was_asked_for(server):
    [[first, second]] = generate(server, prompt="alike 0.7 none", identity_similarity=True).json()[
        "identity_similarity"
    ]
    assert first == pytest.approx(0.7, abs=0.1)
    assert second is None


def test_created_is_when_the_pictures_were_done(server):
    before = int(time.time())
    assert before <= generate(server).json()["created"] <= time.time()


# refused, in OpenAI's form


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 9}, "num_outputs", "num_outputs must be a whole number from 1 to 4."),
        ({"size": "large"}, "size", 'size must be auto, or width and height such as "896x1152".'),
        ({"size": 512}, "size", 'size must be auto, or width and height such as "896x1152".'),
        ({"response_format": "png"}, "response_format", "response_format must be one of url, b64_json."),
        ({"stream": True}, "stream", "stream must be false: events are not served here."),
        ({"main_face_image": None}, "main_face_image", "main_face_image is required."),
    ],
)
def test_a_wrong_field_is_named(server, fields, param, message):
    error = error_of(generate(server, **fields), 400)
    assert error == {
        "message": message,
        "type": "invalid_request_error",
        "code": "invalid_parameters",
        "param": param,
    }


def test_a_size_out_of_range_is_refused_by_the_rule_of_v1(server):
    error = error_of(generate(server, size="64x2048", width=None, height=None), 400)
    assert error["param"] == "width"
    assert error["message"] == (
        "width must be a whole number from 256 to 1536. height must be a whole number from 256 to 1536."
    )


def test_a_photo_without_a_face_has_the_text_of_v1(server):
    error = error_of(generate(server, prompt="no face"), 400)
    assert (error["code"], error["param"]) == ("no_face", None)
    assert error["message"] == server.paint(headers=ALICE, prompt="no face").json()["error"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_a_call_without_a_known_key_is_401(server, headers):
    response = generate(server, headers)
    error = error_of(response, 401)
    assert (error["type"], error["code"]) == ("invalid_request_error", "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("text", ["{", "[]", '{"prompt": ' + "[" * 900 + "]" * 900 + "}"])
def test_a_body_that_cannot_be_read_is_400(server, text):
    headers = ALICE | {"content-type": "application/json"}
    error_of(server.client.post(ADDRESS, content=text, headers=headers), 400)


def test_another_method_and_another_type_have_the_same_form(server):
    response = server.client.get(ADDRESS, headers=ALICE)
    assert response.headers["allow"] == "POST"
    error_of(response, 405)
    error_of(server.client.post(f"{ADDRESS}/", files={"photo": b"x"}, headers=ALICE), 406)
    error_of(server.client.get(f"/json{ADDRESS}", headers=ALICE), 405)


def test_other_addresses_keep_the_usual_form(server):
    assert isinstance(server.paint(headers=ALICE, width=1).json()["error"], str)
    assert isinstance(server.client.get("/v1/images", headers=ALICE).json()["error"], str)


def test_the_rate_limit_of_a_key_holds(run_server):
    with run_server(adapters=("openai",), rate_limit=1) as server:
        assert generate(server, {}).status_code == 200
        refused = generate(server, {})
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")
        assert int(refused.headers["retry-after"]) > 0


def test_while_the_engine_loads_the_answer_is_503(run_server):
    with run_server(adapters=("openai",), ready=False, script={"slow_to_load": True}) as server:
        error = error_of(generate(server, {}), 503)
        assert (error["type"], error["code"]) == ("server_error", "not_ready")
        server.engine.let_load()


def test_a_fault_of_the_server_is_500_in_the_same_form(run_server):
    with run_server(adapters=("openai",)) as server, server.broken():
        assert error_of(generate(server, {}), 500)["type"] == "server_error"


def test_a_foreign_page_is_403_in_the_same_form(run_server):
    with run_server(adapters=("openai",)) as server:
        error_of(generate(server, {"origin": "https://evil.example"}), 403)


def test_a_caller_that_leaves_takes_its_job_with_it(run_server):
    with run_server(adapters=("openai",), script={"gated": True}) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{ADDRESS}", json=server.body(), timeout=0.5, trust_env=False)
        server.wait_until(lambda: server.unfinished == 0)
