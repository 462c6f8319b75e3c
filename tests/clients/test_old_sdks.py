"""Earlier versions of the stock Python SDK, each in an environment of its own. Needs a package index.

1.0.1 calls v1 `run` and v2 `run_async`. 0.2.3 has one class for each old model and none for
flux-pulid: its requests go through its own code, with the URL reassigned and the photo added.
"""

from __future__ import annotations

import base64

import pytest

from live_server import ServerProcess, faceless, form_and_size

pytestmark = [pytest.mark.release, pytest.mark.timeout(600)]

CALLS_OF_1_0_1 = """
import base64, json, sys
import segmind
from segmind import InferenceFailed, SegmindClient
from segmind.exceptions import SegmindError

told = json.load(sys.stdin)
client = SegmindClient(api_key=told["key"], base_url=told["url"] + "/v1")
picture = client.run("flux-pulid", **told["body"])
result = client.run_async("flux-pulid", **told["body"])
try:
    client.run("flux-pulid", **told["mistake"])
except SegmindError as error:
    refused = [error.status, error.detail]
try:
    client.submit_async("flux-pulid", **told["mistake"]).wait(interval=0.1)
except InferenceFailed as error:
    failed = error.detail
print(json.dumps({
    "version": segmind.__version__,
    "picture": base64.b64encode(picture.content).decode(),
    "result": result,
    "refused": refused,
    "failed": failed,
}))
"""

CALLS_OF_0_2_3 = """
import json, sys
import requests
from segmind import SDXL

told = json.load(sys.stdin)
told_by_sdk = {}
post = requests.post

def post_with_a_photo(url, json, headers):
    told_by_sdk.update(json)
    return post(url, json=json | told["body"], headers=headers)

requests.post = post_with_a_photo
model = SDXL(api_key=told["key"])
model.url = told["url"] + "/v1/flux-pulid"
picture = model.generate("portrait of a woman", seed=7)
told["body"] = told["mistake"]
try:
    model.generate("portrait of a woman", seed=7)
except Exception as error:
    refused = str(error)
print()
print(json.dumps({
    "format": picture.format, "size": picture.size, "sent": told_by_sdk, "refused": refused,
}))
"""


@pytest.fixture
def told(server: ServerProcess, api_key, small) -> dict[str, object]:
    mistake = small | {"main_face_image": faceless()}
    return {"url": server.url, "key": api_key, "body": small, "mistake": mistake}


def test_version_1_0_1_runs_on_both_interfaces(told, python_with, run_calls):
    answer = run_calls(python_with(["segmind==1.0.1"]), CALLS_OF_1_0_1, told)
    assert answer["version"] == "1.0.1"
    assert form_and_size(base64.b64decode(answer["picture"])) == ("WEBP", (256, 256))
    assert answer["result"]["status"] == "COMPLETED"
    assert answer["result"]["output"].startswith(told["url"])
    assert answer["refused"] == [400, answer["failed"]]


def test_version_0_2_3_opens_the_picture_and_reads_its_credits(told, python_with, run_calls):
    packages = ["segmind==0.2.3", "requests"]  # which it imports without requiring it
    answer = run_calls(python_with(packages), CALLS_OF_0_2_3, told)
    assert answer["format"] == "WEBP"
    assert answer["size"] == [256, 256]
    assert answer["sent"]["guidance_scale"] == "8"  # every number is sent as text
    assert answer["refused"] == "Error: 400"
