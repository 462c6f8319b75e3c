"""The tiny model behind a real server: several photos, several people and identity files over HTTP."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from golden import goldens
from live_server import faceless, live_server, portrait, wait_until
from model.portraits import difference, generate, photo, results, within_one_level
from pulid.engine import Box, GenerationRequest, Mask, Person
from server.api.v1_schemas import parse_body

SMALL = {
    "prompt": "portrait of woman, neon color, cinematic",
    "seed": 720558,
    "width": 256,
    "height": 256,
    "num_steps": 4,
    "output_format": "png",
}
PLAIN = [  # what the contract can ask for
    case for case in goldens.manifest("plain") if case["photo"] and case["request"].get("true_cfg", 1) >= 1
]
LEFT, RIGHT = [0, 0, 0.5, 1], [0.5, 0, 1, 1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live_server(tmp_path_factory.mktemp("people") / "data", profile="tiny") as running:
        yield running


def paint(server, path="/v1/flux-pulid", **fields):
    response = server.client.post(path, json=SMALL | fields)
    assert response.status_code == 200, response.text
    return response.content


def pixels(data):
    return np.array(Image.open(BytesIO(data)))


def refusal(server, **fields):
    response = server.client.post("/v1/flux-pulid", json=SMALL | fields)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def requested(**changes):
    fields = {name: value for name, value in SMALL.items() if name != "output_format"}
    return GenerationRequest(**fields | changes)


@pytest.mark.parametrize("case", PLAIN, ids=goldens.case_id)
def test_a_plain_body_paints_what_was_recorded_before_there_were_people(engine, case):
    """The recordings are smaller than the wire allows; all the rest of the request is the wire's."""
    recorded = case["request"]
    told = {name: value for name, value in recorded.items() if name != "timestep_to_start_cfg"}
    if "guidance" in told:
        told["guidance_scale"] = told.pop("guidance")
    body = told | {"main_face_image": "-", "width": 256, "height": 256}
    request = parse_body(json.dumps(body).encode(), max_prompt_chars=1000).request
    small = {"width": recorded["width"], "height": recorded["height"]}
    if "timestep_to_start_cfg" in recorded:  # the wire has no field for it
        small["timestep_to_start_cfg"] = recorded["timestep_to_start_cfg"]
    request = replace(request, id_images=(photo(case["photo"]),), **small)
    done = results(engine, {"job": request})["job"]
    for image, key in zip(done.images, case["images"], strict=True):
        assert within_one_level(image, goldens.tensor_of(case["file"], key).numpy()), key


def test_a_plain_call_over_http_is_the_engines_picture(server, tiny):
    expected = generate(tiny, requested(id_images=(photo("collins"),))).images[0]
    assert within_one_level(pixels(paint(server, main_face_image=portrait("collins"))), expected)


def test_copies_of_one_photo_give_its_bytes(server):
    one = paint(server, main_face_image=portrait("obama"))
    assert paint(server, face_images=[portrait("obama")]) == one
    assert paint(server, main_face_image=portrait("obama"), face_images=[portrait("obama")] * 4) == one
    assert paint(server, faces=[{"photos": [portrait("obama")] * 3}]) == one


def test_two_photos_are_another_picture_and_their_fusion_matters(server, tiny):
    names = ("collins", "ardern")
    photos = [portrait(name) for name in names]
    pictures = {}
    for fusion in ("mean", "concat"):
        pictures[fusion] = paint(server, face_images=photos, face_fusion=fusion)
        request = requested(id_images=tuple(photo(name) for name in names), fusion=fusion)
        assert within_one_level(pixels(pictures[fusion]), generate(tiny, request).images[0])
    one = paint(server, main_face_image=photos[0])
    assert len({*pictures.values(), one}) == 3


def identity_of(server, **fields):
    response = server.client.post("/v1/identities", json=fields)
    assert response.status_code == 200, response.text
    return base64.b64encode(response.content).decode()


def test_an_identity_file_gives_the_bytes_of_its_photo(server):
    fields = {"id_weight": 0.9, "start_step": 1, "id_end_step": 3}
    painted = paint(server, main_face_image=portrait("collins"), **fields)
    identity = identity_of(server, main_face_image=portrait("collins"))
    assert paint(server, identity=identity, **fields) == painted
    person = {"identity": identity, "weight": 0.9, "start_step": 1, "end_step": 3}
    assert paint(server, faces=[person], start_step=1) == painted


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_an_identity_file_gives_the_bytes_of_its_photos(server, fusion):
    photos = {"face_images": [portrait("collins"), portrait("ardern")], "face_fusion": fusion}
    assert paint(server, identity=identity_of(server, **photos)) == paint(server, **photos)


def test_an_identity_file_that_is_damaged_or_foreign_is_refused_with_the_reason(server):
    whole = base64.b64decode(identity_of(server, main_face_image=portrait("collins")))
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    checkpoint = header["__metadata__"]["checkpoint"].encode()
    for data, words in (
        (whole[:-9], "damaged"),
        (b"no identity file at all", "no identity file"),
        (whole.replace(checkpoint, b"0" * 64), "another checkpoint"),
    ):
        assert words in refusal(server, identity=base64.b64encode(data).decode())
        assert words in refusal(server, faces=[{"identity": base64.b64encode(data).decode()}])


def test_two_people_in_boxes_are_the_engine_s_and_each_counts(server, tiny):
    def side_by_side(left, right):
        faces = [{"photo": portrait(left), "box": LEFT}, {"photo": portrait(right), "box": RIGHT}]
        return pixels(paint(server, faces=faces))

    whole = side_by_side("collins", "obama")
    assert difference(whole, side_by_side("ardern", "obama")) >= 4
    assert difference(whole, side_by_side("collins", "ardern")) >= 4
    people = (
        Person(photos=(0,), region=Box(left=0, top=0, right=0.5, bottom=1)),
        Person(photos=(1,), region=Box(left=0.5, top=0, right=1, bottom=1)),
    )
    request = requested(id_images=(photo("collins"), photo("obama")), people=people)
    assert within_one_level(whole, generate(tiny, request).images[0])


def test_a_mask_is_a_box_where_it_has_its_form_and_its_person_leaves_when_they_should(server, tiny):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    file = BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    who = {"photo": portrait("obama"), "end_step": 2, "weight": 1.4}
    boxed = paint(server, faces=[who | {"box": LEFT}])
    masked = paint(server, faces=[who | {"mask": base64.b64encode(file.getvalue()).decode()}])
    assert masked == boxed
    person = Person(photos=(0,), region=Mask(mask), end_step=2, weight=1.4)
    expected = generate(tiny, requested(id_images=(photo("obama"),), people=(person,))).images[0]
    assert within_one_level(pixels(masked), expected)


def test_people_of_weight_0_are_nobody(server, tiny):
    faces = [{"photo": portrait("obama"), "weight": 0, "box": LEFT}, {"photo": portrait(), "weight": 0}]
    assert within_one_level(pixels(paint(server, faces=faces)), generate(tiny, requested()).images[0])


def test_a_photo_without_a_face_is_named(server):
    for fields, place in (
        ({"face_images": [portrait(), faceless()]}, "face_images[1]: "),
        ({"faces": [{"photo": portrait()}, {"photos": [portrait(), faceless()]}]}, "faces[1].photos[1]: "),
        ({"main_face_image": faceless()}, ""),  # there is no other
    ):
        assert refusal(server, **fields).startswith(f"{place}No face found.")
    several = {"face_images": [portrait(), faceless()]}
    answer = server.client.post("/v1/identities", json=several)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("face_images[1]: No face found.")


def test_v2_paints_the_same(server):
    faces = [{"photos": [portrait("collins"), portrait()], "box": LEFT}, {"photo": portrait("obama")}]
    job_id = json.loads(paint(server, "/v2/flux-pulid", faces=faces))["request_id"]
    address = f"/v2/requests/{job_id}"
    wait_until(lambda: server.client.get(address).json()["status"] == "COMPLETED", 30, server.explain)
    output = server.client.get(address).json()["output"]
    assert server.client.get(output).content == paint(server, faces=faces)


def test_nothing_of_people_is_in_the_log(server):
    identity = identity_of(server, main_face_image=portrait())
    mask = base64.b64encode(b"no mask at all").decode()
    paint(server, faces=[{"photo": portrait(), "box": [0.12345, 0, 1, 1]}, {"identity": identity}])
    refusal(server, faces=[{"photo": portrait(), "mask": mask}])
    refusal(server, face_images=[faceless(), portrait()])
    for secret in (portrait()[:40], identity[:40], identity[400:440], mask, "0.12345", SMALL["prompt"]):
        assert secret not in server.output()
