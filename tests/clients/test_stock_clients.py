"""The stock Python clients of OpenAI and Replicate, with nothing changed but base URL and key.

Each in an environment of its own, which needs a package index. What the adapters put on the wire is
looked at in tests/api; here it is what these clients make of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from live_server import ServerProcess, faceless, form_and_size, live_server

pytestmark = [pytest.mark.release, pytest.mark.timeout(600)]

OPENAI = "openai==3.54.0"
REPLICATE = "replicate==1.0.7"
KEY = "a-key"

CALLS_OF_OPENAI = """
import json, sys
import openai

told = json.load(sys.stdin)
own = {name: told["body"][name] for name in ("main_face_image", "num_steps", "seed")}
client = openai.OpenAI(api_key=told["key"], base_url=told["url"] + "/v1", max_retries=0)
ask = dict(model="flux-pulid", prompt=told["body"]["prompt"], size="256x256", n=2)
links = client.images.generate(**ask, extra_body=own)
inlined = client.images.generate(**ask, response_format="b64_json", extra_body=own)
errors = []
for body in (own | {"main_face_image": told["faceless"]}, own | {"id_weight": 9}):
    try:
        client.images.generate(**ask, extra_body=body)
    except openai.BadRequestError as error:
        errors.append([error.status_code, error.code, error.param, error.body["message"], error.request_id])
try:
    client.with_options(api_key="wrong").images.generate(**ask, extra_body=own)
except openai.AuthenticationError as error:
    errors.append([error.status_code, error.code])
print(json.dumps({
    "urls": [image.url for image in links.data],
    "pictures": [image.b64_json for image in inlined.data],
    "errors": errors,
}))
"""

CALLS_OF_REPLICATE = """
import json, os, sys

told = json.load(sys.stdin)
os.environ["REPLICATE_BASE_URL"], os.environ["REPLICATE_API_TOKEN"] = told["url"], told["key"]
import replicate
from replicate.exceptions import ModelError, ReplicateError

[picture] = replicate.run("bytedance/flux-pulid", input=told["body"])
waited = replicate.run("bytedance/flux-pulid", input=told["body"], wait=False)
prediction = replicate.predictions.create(version="any", input=told["body"] | {"num_steps": 4})
prediction.wait()
progress = [prediction.progress.current, prediction.progress.total]
long = replicate.predictions.create(version="any", input=told["body"] | {"num_steps": 20, "width": 1536})
long.cancel()
errors = []
try:
    replicate.run("bytedance/flux-pulid", input=told["body"] | {"main_face_image": told["faceless"]})
except ModelError as error:
    errors.append(str(error))
try:
    replicate.Client(api_token="wrong").predictions.get(prediction.id)
except ReplicateError as error:
    errors.append([error.status, error.detail])
print(json.dumps({
    "urls": [picture, waited[0], prediction.output[0]],
    "status": prediction.status,
    "progress": progress,
    "canceled": long.status,
    "errors": errors,
}))
"""


@pytest.fixture(scope="module")
def open_server(tmp_path_factory) -> Iterator[ServerProcess]:
    with live_server(
        tmp_path_factory.mktemp("stock") / "data",
        profile="tiny",
        api_keys=f"tests:{KEY}",
        adapters="openai,replicate",
    ) as live:
        yield live


@pytest.fixture
def told(open_server: ServerProcess, small) -> dict[str, object]:
    return {"url": open_server.url, "key": KEY, "body": small, "faceless": faceless()}


def picture_of(server: ServerProcess, body: dict[str, object]) -> bytes:
    with server.new_client(KEY) as client:
        return client.post("/v1/flux-pulid", json=body).content


def test_openai_s_client_gets_pictures_and_shows_errors(open_server, small, told, python_with, run_calls):
    answer = run_calls(python_with([OPENAI]), CALLS_OF_OPENAI, told)
    assert base64.b64decode(answer["pictures"][0]) == picture_of(open_server, small | {"num_outputs": 2})
    assert all(url.startswith(f"{open_server.url}/outputs/") for url in answer["urls"])
    assert len(answer["urls"]) == len(answer["pictures"]) == 2
    no_face, too_heavy, unknown_key = answer["errors"]
    assert no_face[:3] == [400, "no_face", None]
    assert no_face[3].startswith("No face")
    assert no_face[4]
    assert too_heavy[:4] == [
        400,
        "invalid_parameters",
        "id_weight",
        "id_weight must be a number from 0 to 3.",
    ]
    assert unknown_key == [401, "unauthorized"]


def test_replicate_s_client_runs_polls_cancels_and_shows_errors(
    open_server, small, told, python_with, run_calls
):
    answer = run_calls(python_with([REPLICATE]), CALLS_OF_REPLICATE, told)
    with open_server.new_client() as client:  # the links need no key
        at_once, polled, of_four_steps = (client.get(url).content for url in answer["urls"])
    assert form_and_size(at_once) == form_and_size(of_four_steps) == ("WEBP", (256, 256))
    assert at_once == polled == picture_of(open_server, small)
    assert (answer["status"], answer["progress"]) == ("succeeded", [4, 4])
    assert answer["canceled"] == "canceled"
    no_face, unknown_key = answer["errors"]
    assert no_face.startswith("No face")
    assert unknown_key == [401, "This API key is not valid here. Check it, or ask the operator for one."]
