"""Several photos, several people and identity files on the wire: what reaches the engine, what is refused."""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fakes import flat_picture
from golden import goldens
from pulid.engine import Box, FaceChoice, GenerationRequest, Mask, Person
from server.api.v1_schemas import parse_body
from server.security.image_decode import MAX_MASK_SIDE

IDENTITY = base64.b64encode(b"an identity file").decode()
URL = "https://example.com/a.jpg"
SOURCES = ("main_face_image", "face_images", "identity", "faces")
BOX_RULE = (
    "[left, top, right, bottom] in fractions of the canvas from 0 to 1, left before right and"
    " top before bottom"
)


def as_base64(pixels, form="PNG"):
    file = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def photo_of(*colour):
    return as_base64(flat_picture(48, 64, colour))


RED, BLUE = photo_of(200, 0, 0), photo_of(0, 0, 200)
WHITE_ABOVE = np.repeat([[255], [0]], 8, axis=0).repeat(16, axis=1).astype(np.uint8)  # (16, 16)


def asked(**fields):
    """The checked body of a request that names a face in no other way."""
    return parse_body(json.dumps({"prompt": "p", "seed": 1, **fields}).encode(), max_prompt_chars=100)


def paint(server, **fields):
    """A call that names a face in no other way."""
    return server.paint(**{"main_face_image": None, **fields})


def refused(response, *fields):
    """The text of a call whose fields are wrong."""
    assert response.status_code == 400, response.text
    answer = response.json()
    assert [problem["field"] for problem in answer["fields"]] == list(fields)
    assert answer["error"] == " ".join(problem["message"] for problem in answer["fields"])
    return answer["error"]


def person(**fields):
    return {"photo": "AAAA", **fields}


# absent


@pytest.mark.parametrize("case", goldens.manifest("plain"), ids=goldens.case_id)
def test_a_body_of_the_plain_contract_is_the_request_it_was_before_there_were_people(case):
    """Its picture: tests/model/test_plain_requests.py."""
    recorded = {**case["request"], "width": 256, "height": 272}
    words = {"guidance": "guidance_scale"}
    unsaid = (
        {"timestep_to_start_cfg", "true_cfg"}
        if recorded.get("true_cfg", 1) < 1
        else {"timestep_to_start_cfg"}
    )
    body = {words.get(name, name): value for name, value in recorded.items() if name not in unsaid}
    told = {name: value for name, value in recorded.items() if name not in unsaid}
    parsed = asked(main_face_image="AAAA", **body)
    assert parsed.request == GenerationRequest(**told, timestep_to_start_cfg=told.get("start_step", 0))
    assert (parsed.photos, parsed.places, parsed.request.people) == (("AAAA",), (), ())


def test_null_in_every_new_field_is_the_plain_contract(server):
    plain = server.paint(seed=1).content
    nothing = dict.fromkeys(["face_images", "face_fusion", "identity", "faces"])
    assert server.paint(seed=1, **nothing).content == plain


def test_without_a_face_in_any_form_the_photo_is_what_is_missing(server):
    nothing = dict.fromkeys(["face_images", "identity", "faces"])
    assert refused(paint(server, **nothing), "main_face_image") == "main_face_image is required."
    assert refused(paint(server, prompt=None), "main_face_image", "prompt")


# several photos of one person


def test_photos_reach_the_engine_in_order_the_main_one_first(server):
    assert server.paint(face_images=[RED, BLUE], face_fusion="concat", id_weight=0.5).status_code == 200
    request = server.engine.last_request
    assert (request.fusion, request.people, request.id_weight) == ("concat", (), 0.5)
    assert len(request.id_images) == 3
    parsed = asked(main_face_image="main", face_images=["one", "two"])
    assert parsed.photos == ("main", "one", "two")
    assert parsed.places == ("main_face_image", "face_images[0]", "face_images[1]")


def test_each_photo_and_their_order_make_a_difference(server):
    bodies = ([RED], [BLUE], [RED, RED], [RED, BLUE], [BLUE, RED])
    pictures = {paint(server, seed=1, face_images=photos).content for photos in bodies}
    assert len(pictures) == len(bodies)


def test_the_main_photo_may_be_left_out_or_be_the_only_one(server, photo):
    one = server.paint(seed=1)
    assert paint(server, seed=1, face_images=[photo]).content == one.content


def test_eight_photos_are_taken_in_every_form(server, run_server, photo_host):
    with run_server(fetch_allow=(photo_host,)) as fetching:
        forms = [
            RED,
            f"data:image/png;base64,{BLUE}",
            f"http://{photo_host}/photo.png",
            f" {RED[:4]}\n{RED[4:]}",
        ]
        assert paint(fetching, face_images=forms * 2).status_code == 200
        assert len(fetching.engine.last_request.id_images) == 8


def test_a_ninth_photo_is_refused(server):
    text = refused(paint(server, face_images=[RED] * 9), "face_images")
    assert text == "face_images must be a list of 1 to 8 photos."
    text = refused(server.paint(face_images=[RED] * 8), "face_images")
    assert text == "face_images makes it more than 8 photos, the most that one request may have."
    people = [{"photos": [RED] * 4}, {"photos": [RED] * 4}, {"photo": RED}]
    assert "more than 8 photos" in refused(paint(server, faces=people), "faces")


@pytest.mark.parametrize("value", [[], "AAAA", {}, 5, True])
def test_photos_are_a_list(server, value):
    assert refused(paint(server, face_images=value), "face_images").endswith("a list of 1 to 8 photos.")


@pytest.mark.parametrize("value", [None, "", 5, ["AAAA"], {"photo": "AAAA"}])
def test_what_is_no_photo_is_named_by_its_place(server, value):
    text = refused(paint(server, face_images=[RED, value]), "face_images[1]")
    assert text == "face_images[1] must be an http(s) URL, a data URI or the base64 text of a photo."


@pytest.mark.parametrize("value", ["average", "", 1, True, ["mean"]])
def test_a_fusion_is_one_of_two(server, value):
    assert refused(server.paint(face_fusion=value), "face_fusion").endswith("must be one of mean, concat.")


@pytest.mark.parametrize("bad", ["AAAA", "not base64!", "http://127.0.0.1:9/secret.png"])
@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_photo_that_is_refused_is_named_by_its_place(server, api, bad):
    for fields, place in (
        ({"face_images": [RED, bad]}, "face_images[1]"),
        ({"faces": [{"photo": RED}, {"photos": [RED, bad]}]}, "faces[1].photos[1]"),
        ({"faces": [{"photo": bad}]}, "faces[0].photo"),
    ):
        if api == "v1":
            response = paint(server, **fields)
            assert response.status_code == 400
            error = response.json()["error"]
        else:
            result = server.finished(main_face_image=None, **fields)
            assert result["status"] == "FAILED"
            error = result["error"]
        assert place in error
        assert "main_face_image" not in error
        assert "secret" not in error


def test_the_only_photo_needs_no_name(server):
    """As it was before there could be others."""
    for bad, text in (
        ("AAAA", "The photo is in no format"),
        ("http://127.0.0.1:9/", "The photo at main_face"),
    ):
        assert server.paint(main_face_image=bad).json()["error"].startswith(text)


# an identity file


def test_an_identity_file_is_one_person_with_the_fields_of_the_contract(server):
    fields = {"identity": IDENTITY, "id_weight": 0.8, "start_step": 1, "id_end_step": 3, "num_steps": 4}
    for identity in (IDENTITY, f"data:application/octet-stream;base64,{IDENTITY}", IDENTITY.rstrip("=")):
        assert paint(server, **fields | {"identity": identity}).status_code == 200
        request = server.engine.last_request
        expected = Person(identity=b"an identity file", weight=0.8, start_step=1, end_step=3)
        assert (request.id_images, request.everyone) == ((), (expected,))
        assert request.timestep_to_start_cfg == 1


def test_a_job_without_any_photo_is_done_in_v2_too(server):
    assert server.finished(main_face_image=None, identity=IDENTITY)["status"] == "COMPLETED"


@pytest.mark.parametrize("value", ["", "not base64!", "AA=A", 5, True, [], "a,b", "="])
def test_what_is_no_base64_is_no_identity(server, value):
    for fields, place in (
        ({"identity": value}, "identity"),
        ({"faces": [{"identity": value}]}, "faces[0].identity"),
    ):
        assert (
            refused(paint(server, **fields), place) == f"{place} must be the base64 text of an identity file."
        )


def test_a_large_identity_is_refused_at_once(server):
    text = refused(paint(server, identity=base64.b64encode(bytes(4 * 2**20 + 1)).decode()), "identity")
    assert text == "identity must be at most 4 MB as a file."


def test_an_identity_that_the_engine_refuses_is_400(server):
    response = paint(server, identity=IDENTITY, prompt="a foreign identity")
    assert (response.status_code, response.json()["error"]) == (
        400,
        "The identity was made by other networks.",
    )


# several people


def test_people_reach_the_engine_with_all_that_was_said_of_them(server):
    faces = [
        {"photo": RED, "box": [0, 0, 0.5, 1]},
        {
            "photos": [BLUE, RED],
            "fusion": "concat",
            "mask": as_base64(WHITE_ABOVE),
            "weight": 0.7,
            "start_step": 1,
            "end_step": 3,
            "face_index": 2,
            "face_order": "central",
        },
        {"identity": IDENTITY},
    ]
    for answer in (paint(server, faces=faces, strict_face=True), paint(server, faces=faces, num_outputs=2)):
        assert answer.status_code == 200
    strict, lenient = list(server.engine.admitted.values())[-2:]
    assert strict.people == (
        Person(photos=(0,), region=Box(left=0, top=0, right=0.5, bottom=1), face=FaceChoice(strict=True)),
        Person(
            photos=(1, 2),
            fusion="concat",
            region=Mask(WHITE_ABOVE),
            weight=0.7,
            start_step=1,
            end_step=3,
            face=FaceChoice(index=2, order="central", strict=True),
        ),
        Person(identity=b"an identity file", face=FaceChoice(strict=True)),
    )
    assert [someone.face.strict for someone in lenient.people] == [False] * 3
    assert len(strict.id_images) == 3


def test_people_are_the_same_in_v2(server):
    faces = [{"photo": RED, "box": [0, 0, 0.5, 1]}, {"photo": BLUE, "mask": as_base64(WHITE_ABOVE)}]
    fields = {"main_face_image": None, "faces": faces, "seed": 3, "output_format": "png"}
    result = server.finished(**fields)
    assert server.client.get(result["output"]).content == server.paint(**fields).content


def test_numbers_of_people_may_come_as_text_null_is_absent_and_unknown_fields_are_ignored(server):
    numbers = {
        "weight": "0.5",
        "start_step": "1",
        "end_step": "2",
        "face_index": "1",
        "box": ["0", 0, "0.5", "1"],
    }
    nothing = dict.fromkeys(["photos", "identity", "mask", "fusion", "face_order"])
    assert paint(server, faces=[person(**numbers, **nothing, photo=RED, hat="red")]).status_code == 200
    [someone] = server.engine.last_request.people
    assert someone == Person(
        photos=(0,),
        weight=0.5,
        start_step=1,
        end_step=2,
        face=FaceChoice(index=1),
        region=Box(left=0, top=0, right=0.5, bottom=1),
    )


def test_the_fields_of_the_only_person_are_not_read_beside_people_but_true_cfg_starts_where_they_say():
    unread = {
        "id_weight": 3,
        "id_end_step": 1,
        "face_index": 5,
        "face_order": "central",
        "face_fusion": "concat",
    }
    request = asked(faces=[person()], start_step=2, true_cfg=2, **unread).request
    assert request.people == (Person(photos=(0,)),)
    assert (request.everyone, request.timestep_to_start_cfg) == (request.people, 2)


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"face_index": -1}, "face_index", "a whole number of at least 0"),
        ({"face_index": 1.5}, "face_index", "a whole number of at least 0"),
        ({"face_order": "smallest"}, "face_order", "one of largest, left-to-right, central"),
        ({"fusion": "sum"}, "fusion", "one of mean, concat"),
        ({"weight": 3.1}, "weight", "a number from 0 to 3"),
        ({"weight": True}, "weight", "a number from 0 to 3"),
        ({"weight": "NaN"}, "weight", "a number from 0 to 3"),
        ({"start_step": 21}, "start_step", "a whole number from 0 to 20"),
        ({"end_step": -1}, "end_step", "a whole number from 0 to 20"),
        ({"end_step": ""}, "end_step", "a whole number from 0 to 20"),
        ({"box": "left"}, "box", BOX_RULE),
        ({"box": [0, 0, 1]}, "box", BOX_RULE),
        ({"box": [0, 0, 1, 1, 1]}, "box", BOX_RULE),
        ({"box": [0.5, 0, 0.5, 1]}, "box", BOX_RULE),
        ({"box": [0, 1, 1, 0]}, "box", BOX_RULE),
        ({"box": [0, 0, 1.01, 1]}, "box[2]", "a number from 0 to 1"),
        ({"box": [0, None, 1, 1]}, "box[1]", "a number from 0 to 1"),
        ({"box": [0, 0, "all", 1]}, "box[2]", "a number from 0 to 1"),
        ({"photo": ""}, "photo", "an http(s) URL, a data URI or the base64 text of a photo"),
        ({"photo": None, "photos": []}, "photos", "a list of 1 to 8 photos"),
        (
            {"photo": None, "photos": ["AAAA", 5]},
            "photos[1]",
            "an http(s) URL, a data URI or the base64 text of a photo",
        ),
        ({"mask": 5}, "mask", "a data URI or the base64 text of a picture"),
        ({"mask": URL}, "mask", "a data URI or the base64 text of a picture"),
    ],
)
def test_what_a_person_may_be_is_told_with_the_place(server, fields, place, words):
    faces = [person(), person(**fields)]
    assert refused(paint(server, faces=faces), f"faces[1].{place}") == f"faces[1].{place} must be {words}."
    result = server.finished(main_face_image=None, faces=faces)
    assert (result["status"], result["error"]) == ("FAILED", f"faces[1].{place} must be {words}.")


@pytest.mark.parametrize(
    ("someone", "words"),
    [
        ({}, "must have a photo, photos or an identity, and only one of them."),
        (
            {"photo": "AAAA", "photos": ["AAAA"]},
            "must have a photo, photos or an identity, and only one of them.",
        ),
        (
            {"photo": "AAAA", "identity": IDENTITY},
            "must have a photo, photos or an identity, and only one of them.",
        ),
        (person(box=[0, 0, 1, 1], mask=RED), "must have a box or a mask, not both."),
        (5, "must be an object that describes one person."),
        (None, "must be an object that describes one person."),
        ([], "must be an object that describes one person."),
    ],
)
def test_each_person_has_one_face_and_at_most_one_place(server, someone, words):
    assert refused(paint(server, faces=[someone]), "faces[0]") == f"faces[0] {words}"


@pytest.mark.parametrize("value", [[], {}, "AAAA", [person()] * 5])
def test_people_are_a_list_of_up_to_four(server, value):
    assert refused(paint(server, faces=value), "faces") == "faces must be a list of 1 to 4 people."


def test_all_wrong_places_are_named_at_once(server):
    faces = [person(weight=9), person(box=[0, 0, 5, 5], end_step=99)]
    places = ["faces[0].weight", "faces[1].box[2]", "faces[1].box[3]", "faces[1].end_step"]
    refused(paint(server, faces=faces, width=1), "width", *places)


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        (("main_face_image", "identity"), "identity", "main_face_image"),
        (("face_images", "identity"), "identity", "face_images"),
        (("main_face_image", "faces"), "faces", "main_face_image"),
        (("face_images", "faces"), "faces", "face_images"),
        (("identity", "faces"), "faces", "identity"),
        (SOURCES, "faces", "main_face_image and face_images and identity"),
    ],
)
def test_a_face_is_named_in_one_way_only(server, given, field, words):
    values = {"main_face_image": RED, "face_images": [RED], "identity": IDENTITY, "faces": [person()]}
    text = refused(paint(server, **{name: values[name] for name in given}), field)
    assert text == f"{field} cannot be given together with {words}."


def test_values_are_never_quoted(server):
    secret = "zebra-in-a-tutu"
    faces = [
        {"photo": secret + "\0", "box": [secret], "mask": secret, "fusion": secret, "identity": secret + "!"}
    ]
    for fields in ({"faces": faces}, {"faces": secret}, {"face_images": secret}, {"face_fusion": secret}):
        response = paint(server, **fields)
        assert response.status_code == 400
        assert secret not in response.text


# masks


def mask_of(**fields):
    [someone] = asked(faces=[person(**fields)]).request.people
    return someone.region.weights


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP"])
def test_a_mask_is_levels_of_gray_of_any_size(form):
    levels = np.array([[0, 255], [255, 0]], np.uint8)
    options = {"mask": as_base64(levels.repeat(9, 0).repeat(5, 1), form)}
    got = mask_of(**options)
    assert got.shape == (18, 10)
    assert np.abs(got.astype(int) - levels.repeat(9, 0).repeat(5, 1)).mean() < (6 if form == "WEBP" else 1)
    assert mask_of(mask=as_base64([[7]])).tolist() == [[7]]


def test_where_a_mask_is_transparent_nobody_is():
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:2, :, 3] = 0
    assert (
        mask_of(mask=f"data:image/png;base64,{as_base64(pixels)}").tolist() == [[0] * 4] * 2 + [[255] * 4] * 2
    )


def test_a_large_mask_is_brought_down_by_the_mean_of_areas():
    levels = np.zeros((40, 4 * MAX_MASK_SIDE), np.uint8)
    levels[:, 2::4] = levels[:, 3::4] = 255
    got = mask_of(mask=as_base64(levels))
    assert got.shape == (40, MAX_MASK_SIDE)
    assert set(got.ravel()) <= {127, 128}


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("AAAA", "The mask is in no format this server reads"),
        (RED[:-60], "The mask is damaged or incomplete"),
        (as_base64(np.zeros((4100, 4100), np.uint8)), "The mask has more than 16 megapixels"),
    ],
    ids=["no picture", "half a picture", "too large"],
)
def test_a_mask_that_cannot_be_used_is_named_with_the_reason(server, mask, words):
    text = refused(paint(server, faces=[person(mask=mask)]), "faces[0].mask")
    assert text.startswith(f"faces[0].mask cannot be used. {words}")


def test_the_form_of_the_answer_is_asked_for_beside_people_too(server):
    assert paint(server, faces=[{"photo": RED}], base64=True).headers["content-type"] == "application/json"
    assert paint(server, faces=[{"photo": RED}], base64="false").headers["content-type"] == "image/webp"
