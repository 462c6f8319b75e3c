"""What a successful v1 call answers: the picture's bytes, its headers, the JSON form."""

import base64
import json
import re
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from fakes import colour_of

PAGE_BODY = {
    "seed": 720558,
    "width": 896,
    "height": 1152,
    "prompt": "portrait of woman, neon color, cinematic",
    "main_face_image": "https://segmind-sd-models.s3.amazonaws.com/display_images/flux-pulid-ip.jpeg",
    "true_cfg": 1,
    "id_weight": 1.05,
    "num_steps": 20,
    "start_step": 0,
    "num_outputs": 1,
    "output_format": "webp",
    "guidance_scale": 4,
    "output_quality": 80,
    "negative_prompt": "bad quality, worst quality, text, signature, watermark, extra limbs, "
    "low resolution, partially rendered objects, deformed or partially rendered eyes, deformed, "
    "deformed eyeballs, cross-eyed, blurry",
    "max_sequence_length": 128,
}
FORMATS = [("webp", "WEBP", "image/webp"), ("png", "PNG", "image/png"), ("jpg", "JPEG", "image/jpeg")]


def opened(data):
    image = Image.open(BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("name", "kind", "content_type"), [*FORMATS, ("jpeg", "JPEG", "image/jpeg")], ids=lambda value: value
)
def test_the_body_is_a_picture_of_the_asked_format_and_size(server, name, kind, content_type):
    response = server.paint(output_format=name, width=272, height=320, seed=7)
    assert response.headers["content-type"] == content_type
    image = opened(response.content)
    assert image.format == kind
    assert image.size == (272, 320)
    assert np.allclose(np.asarray(image)[100, 100], colour_of(7), atol=4)


@pytest.mark.parametrize("name", ["webp", "png", "jpg"])
def test_a_picture_carries_no_metadata(server, name):
    content = server.paint(output_format=name, prompt="a secret").content
    image = opened(content)
    assert not image.getexif()
    assert not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
    assert b"secret" not in content


def test_webp_is_the_default_format(server):
    assert server.paint().headers["content-type"] == "image/webp"


@pytest.mark.parametrize("name", ["webp", "jpg"])
def test_a_lower_quality_makes_a_smaller_file(server, name):
    asked = {"output_format": name, "seed": 1, "width": 1536}
    sizes = [len(server.paint(output_quality=quality, **asked).content) for quality in (5, 95)]
    assert sizes[0] < sizes[1]


def test_quality_means_nothing_to_png(server):
    pictures = [server.paint(output_format="png", output_quality=q, seed=1).content for q in (1, 100)]
    assert pictures[0] == pictures[1]


def test_the_headers_tell_the_figures(server):
    headers = server.paint(seed=720558, width=300, height=260).headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert 0 <= float(headers["x-generation-time"]) < 20
    assert headers["x-remaining-credits"] == "1000000"
    assert headers["x-cost"] == "0"
    assert headers["x-seed-value"] == "720558"
    # Real pixels: sides are rounded up to multiples of 16.
    assert json.loads(headers["x-output-metadata"]) == {"height": 272, "width": 304, "samples": 1}
    assert "x-flux-pulid-notice" not in headers


def test_a_clients_request_id_is_never_taken_over(server):
    for header in ("x-request-id", "X-Request-ID"):
        response = server.client.get("/health", headers={header: "a" * 32})
        assert response.headers["x-request-id"] != "a" * 32


def test_the_notice_of_a_profile_is_in_every_answer(run_server):
    with run_server(script={"notice": "abstract pictures"}) as server:
        assert server.paint().headers["x-flux-pulid-notice"] == "abstract pictures"
        assert server.paint(base64=True).headers["x-flux-pulid-notice"] == "abstract pictures"


def test_the_credits_figure_is_a_setting(keyed_server):
    assert keyed_server.paint(headers={"x-api-key": "alice-key"}).headers["x-remaining-credits"] == "77"


def test_of_several_pictures_the_body_is_the_first(server):
    response = server.paint(num_outputs=3, seed=40, output_format="png")
    assert json.loads(response.headers["x-output-metadata"])["samples"] == 3
    assert tuple(np.asarray(opened(response.content))[0, 0]) == colour_of(40)
    assert response.headers["x-seed-value"] == "40"


def test_of_several_pictures_all_are_linked_in_order(server):
    response = server.paint(num_outputs=3, seed=60, output_format="png")
    links = re.findall(r'<([^>]+)>; rel="item"', response.headers["link"])
    assert len(links) == 3
    assert all(re.fullmatch(rf"{server.url}/outputs/[0-9a-f]{{32}}/{i}\.png", links[i]) for i in range(3))
    pictures = [httpx.get(link, trust_env=False) for link in links]
    assert [picture.headers["content-type"] for picture in pictures] == ["image/png"] * 3
    assert pictures[0].content == response.content
    assert [tuple(np.asarray(opened(p.content))[0, 0]) for p in pictures] == [
        colour_of(seed) for seed in (60, 61, 62)
    ]


def test_one_picture_needs_no_link(server):
    assert "link" not in server.paint().headers


def test_base64_true_answers_json_with_one_picture_as_text(server):
    response = server.paint(base64=True, seed=3, output_format="png")
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert answer["status"] == "Success"
    assert answer["image_format"] == "png"
    assert answer["outputs"] == 1
    assert answer["seed"] == 3
    assert answer["infer_time"] == pytest.approx(float(response.headers["x-generation-time"]))
    assert answer["request_id"] == response.headers["x-request-id"]
    assert answer["images"] == [answer["image"]]
    assert opened(base64.b64decode(answer["image"], validate=True)).format == "PNG"
    assert response.headers["x-remaining-credits"] == "1000000"
    assert len(answer["output"]) == 1
    assert httpx.get(answer["output"][0], trust_env=False).content == base64.b64decode(answer["image"])
    assert set(answer) == {
        *("status", "image", "images", "image_format", "infer_time"),
        *("outputs", "seed", "request_id", "output"),
    }


def test_base64_true_carries_every_picture_in_order(server):
    answer = server.paint(base64=True, seed=50, num_outputs=4, output_format="png").json()
    assert answer["outputs"] == 4
    assert answer["image"] == answer["images"]
    colours = [tuple(np.asarray(opened(base64.b64decode(text)))[0, 0]) for text in answer["images"]]
    assert colours == [colour_of(seed) for seed in (50, 51, 52, 53)]
    assert [url.rpartition("/")[2] for url in answer["output"]] == ["0.png", "1.png", "2.png", "3.png"]


JSON, BYTES = "application/json", "image/webp"
V1, QUERY_JSON, QUERY_BYTES, MOUNTED = (
    "/v1/flux-pulid",
    "/v1/flux-pulid?response_format=json",
    "/v1/flux-pulid?response_format=bytes",
    "/json/v1/flux-pulid",
)
AXIOS = "application/json, text/plain, */*"


@pytest.mark.parametrize(
    ("path", "accept", "base64_field", "content_type"),
    [
        # Nothing is said: the setting, which is bytes.
        (V1, "*/*", None, BYTES),
        (V1, "", None, BYTES),
        (V1, AXIOS, None, BYTES),
        (V1, "image/webp, application/json", None, BYTES),
        (V1, "text/html", None, BYTES),
        # 4: a narrow Accept.
        (V1, "application/json", None, JSON),
        (V1, "Application/JSON; q=0.9, text/plain", False, JSON),
        # 3: the base URL, whatever Accept says.
        (MOUNTED, "*/*", None, JSON),
        (MOUNTED, "image/png", False, JSON),
        (f"{MOUNTED}/", AXIOS, None, JSON),
        # 2: the query, whatever base URL and Accept say.
        (QUERY_JSON, "*/*", None, JSON),
        (QUERY_BYTES, "application/json", None, BYTES),
        (f"/json{QUERY_BYTES}", "application/json", None, BYTES),
        # 1: the field, whatever the rest says.
        (V1, "*/*", True, JSON),
        (QUERY_BYTES, "image/webp", True, JSON),
    ],
)
def test_the_first_rule_that_fits_decides_the_form(server, path, accept, base64_field, content_type):
    field = {} if base64_field is None else {"base64": base64_field}
    response = server.paint(path, {"accept": accept}, **field)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == content_type


@pytest.mark.parametrize("name", ["base64", "base\\u0036\\u0034"])
def test_the_base64_field_is_seen_however_its_name_is_written(server, photo, name):
    body = (
        f'{{"main_face_image": "{photo}", "prompt": "\\u00e9", "width": 256, "height": 256, "{name}": true}}'
    )
    response = server.client.post("/v1/flux-pulid", content=body)
    assert response.headers["content-type"] == JSON


def test_the_words_base64_in_a_prompt_decide_nothing(server):
    assert server.paint(prompt='"base64": true').headers["content-type"] == BYTES


def test_a_setting_decides_where_nothing_is_said(run_server):
    with run_server(v1_response="json") as server:
        assert server.paint().headers["content-type"] == JSON
        assert server.paint(QUERY_BYTES).headers["content-type"] == BYTES


def test_a_form_that_does_not_exist_is_refused_before_the_work(server):
    before = len(server.engine.admitted)
    response = server.paint("/v1/flux-pulid?response_format=b64_json")
    assert response.status_code == 400
    assert response.json()["error"] == "response_format must be one of bytes, json."
    assert len(server.engine.admitted) == before


def test_the_same_picture_comes_in_both_forms(server):
    asked = {"seed": 11, "output_format": "png"}
    answer = server.paint(MOUNTED, **asked).json()
    assert base64.b64decode(answer["image"]) == server.paint(**asked).content


def test_a_trailing_slash_changes_nothing(server):
    response = server.paint("/v1/flux-pulid/")
    assert response.status_code == 200
    assert not response.history
    assert server.client.get("/health/").json() == {"status": "ok"}


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", None])
def test_json_is_read_with_and_without_its_content_type(server, photo, content_type):
    body = json.dumps({"main_face_image": photo, "prompt": "p", "width": 256, "height": 256, "num_steps": 1})
    headers = {"content-type": content_type} if content_type else {}
    request = server.client.build_request("POST", "/v1/flux-pulid", content=body, headers=headers)
    assert ("content-type" in request.headers) == (content_type is not None)
    assert server.client.send(request).status_code == 200


def test_the_body_of_the_public_pages_sample_works_as_it_is(run_server, photo_bytes):
    fetched = []

    async def fetch(url):
        fetched.append(url)
        return photo_bytes

    with run_server(fetch_photo=fetch) as server:
        response = server.client.post("/v1/flux-pulid", headers={"x-api-key": "YOUR_API_KEY"}, json=PAGE_BODY)
        assert response.status_code == 200
        assert fetched == [PAGE_BODY["main_face_image"]]
        assert opened(response.content).size == (896, 1152)
        assert response.headers["x-seed-value"] == "720558"


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "data:image/png;base64,{}",
        "DATA:image/png;name=a.png;BASE64,{}",
        "data:;base64,{}",
        "  {}\n",
    ],
)
def test_the_photo_may_be_base64_or_a_data_uri(server, photo, form):
    assert server.paint(main_face_image=form.format(photo)).status_code == 200
    assert server.engine.last_request.id_images[0].shape == (48, 64, 3)


def test_the_photo_may_be_wrapped_and_unpadded_base64(server, photo):
    wrapped = "\r\n".join(photo[start : start + 76] for start in range(0, len(photo), 76)).rstrip("=")
    assert server.paint(main_face_image=wrapped).status_code == 200
