"""Every parameter of v1: what reaches the engine, what is refused, what is forgiven."""

import json

import pytest

from pulid.engine import DEFAULT_NEGATIVE_PROMPT, LARGEST_FACE, FaceChoice, GenerationRequest
from server.api.v1_schemas import parse_body

# wire name, engine's word, default, minimum, maximum
WHOLE = [
    ("width", "width", 896, 256, 1536),
    ("height", "height", 1152, 256, 1536),
    ("num_steps", "num_steps", 20, 1, 20),
    ("start_step", "start_step", 0, 0, 10),
    ("max_sequence_length", "max_sequence_length", 128, 128, 512),
    ("num_outputs", "num_outputs", 1, 1, 4),
    ("seed", "seed", None, 0, 2**63 - 1),
]
REAL = [
    ("guidance_scale", "guidance", 4.0, 1, 10),
    ("id_weight", "id_weight", 1.05, 0, 3),
    ("true_cfg", "true_cfg", 1.0, 1, 10),
]
NUMBERS = WHOLE + REAL
NAMES = [row[0] for row in NUMBERS]
LOWEST = {name: low for name, _, _, low, _ in NUMBERS} | {"output_quality": 1, "seed": -1}
HIGHEST = {name: high for name, _, _, _, high in NUMBERS} | {"output_quality": 100}


def refused(response, field):
    """The text for one refused field."""
    assert response.status_code == 400, response.text
    answer = response.json()
    assert [problem["field"] for problem in answer["fields"]] == [field]
    assert answer["error"] == answer["fields"][0]["message"]
    return answer["error"]


def test_only_photo_and_prompt_are_needed_and_the_rest_has_the_contracts_defaults(server, photo):
    response = server.client.post("/v1/flux-pulid", json={"main_face_image": photo, "prompt": "a knight"})
    assert response.status_code == 200
    request = server.engine.last_request
    assert request.prompt == "a knight"
    assert request.negative_prompt == DEFAULT_NEGATIVE_PROMPT
    for _, word, default, _, _ in NUMBERS:
        assert default is None or getattr(request, word) == default
    assert request.id_images[0].shape == (48, 64, 3)
    assert response.headers["content-type"] == "image/webp"


@pytest.mark.parametrize(("name", "word", "default", "low", "high"), NUMBERS, ids=NAMES)
def test_both_ends_of_a_range_reach_the_engine(server, name, word, default, low, high):
    small = {"width": 256, "height": 256, "num_steps": 1}
    for value in (low, high):
        assert server.paint(**small | {name: value}).status_code == 200
        assert getattr(server.engine.last_request, word) == value


@pytest.mark.parametrize("name", [*NAMES, "output_quality"])
def test_beyond_a_range_the_answer_names_field_and_range(server, name):
    for value in (LOWEST[name] - 1, HIGHEST[name] + 1):
        text = refused(server.paint(**{name: value}), name)
        assert text.startswith(f"{name} must be a")
        assert f"from {LOWEST[name]} to {HIGHEST[name]}" in text


@pytest.mark.parametrize("name", [*NAMES, "output_quality"])
@pytest.mark.parametrize("value", [True, False, "many", [], {}, "NaN", "Infinity", "1e999", "0x10", [5]])
def test_what_is_no_number_is_refused(server, name, value):
    refused(server.paint(**{name: value}), name)


@pytest.mark.parametrize("name", [*{*NAMES, "output_quality"} - {"seed"}])
def test_blank_text_is_no_number(server, name):
    refused(server.paint(**{name: ""}), name)


@pytest.mark.parametrize("row", WHOLE, ids=[row[0] for row in WHOLE])
def test_a_fraction_is_no_whole_number(server, row):
    refused(server.paint(**{row[0]: row[3] + 0.5}), row[0])


@pytest.mark.parametrize(
    ("name", "text", "word", "value"),
    [
        ("width", "512", "width", 512),
        ("width", 512.0, "width", 512),
        ("num_steps", " 3 ", "num_steps", 3),
        ("guidance_scale", "3.5", "guidance", 3.5),
        ("id_weight", "1", "id_weight", 1.0),
        ("seed", "720558", "seed", 720558),
        ("seed", str(2**63 - 1), "seed", 2**63 - 1),
    ],
)
def test_numbers_may_come_as_text(server, name, text, word, value):
    assert server.paint(**{name: text}).status_code == 200
    assert getattr(server.engine.last_request, word) == value


def test_the_true_cfg_starts_where_the_identity_does(server):
    assert server.paint(start_step=4, true_cfg=2, num_steps=8).status_code == 200
    assert server.engine.last_request.timestep_to_start_cfg == 4


def test_true_cfg_has_two_spellings_and_the_documented_one_wins(server):
    for given, value in (
        ({"True_cfg": 3}, 3.0),
        ({"True_cfg": 3, "true_cfg": 2}, 2.0),
        ({"True_cfg": 3, "true_cfg": None}, 3.0),
    ):
        assert server.paint(**given).status_code == 200
        assert server.engine.last_request.true_cfg == value
    refused(server.paint(True_cfg=11), "true_cfg")


def test_null_means_not_given(server, photo):
    optional = [*NAMES, "negative_prompt", "output_format", "output_quality", "base64"]
    body = {"main_face_image": photo, "prompt": "p"} | dict.fromkeys(optional)
    assert server.client.post("/v1/flux-pulid", json=body).status_code == 200
    request = server.engine.last_request
    assert (request.width, request.num_steps, request.id_weight) == (896, 20, 1.05)
    assert request.negative_prompt == DEFAULT_NEGATIVE_PROMPT


def test_unknown_fields_are_ignored(server):
    assert server.paint(scheduler="euler", num_inference_steps=999, webhook_url=None).status_code == 200


@pytest.mark.parametrize("name", ["main_face_image", "prompt"])
def test_a_required_field_that_is_absent_or_null_is_named(server, photo, name):
    body = {"main_face_image": photo, "prompt": "p"}
    for broken in (body | {name: None}, {key: value for key, value in body.items() if key != name}):
        response = server.client.post("/v1/flux-pulid", json=broken)
        assert refused(response, name) == f"{name} is required."


def test_all_wrong_fields_are_named_at_once(server):
    answer = server.paint(width=1, height="x", prompt=None).json()
    assert {problem["field"] for problem in answer["fields"]} == {"width", "height", "prompt"}
    assert all(problem["message"] in answer["error"] for problem in answer["fields"])


@pytest.mark.parametrize("value", ["gif", "PNG", "", 5, True, ["png"]])
def test_an_unknown_output_format_names_the_known_ones(server, value):
    assert "png, jpg, webp" in refused(server.paint(output_format=value), "output_format")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "main_face_image"])
@pytest.mark.parametrize("value", [5, True, ["a"], {"a": 1}, 1.5])
def test_text_is_text(server, name, value):
    refused(server.paint(**{name: value}), name)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "main_face_image"])
@pytest.mark.parametrize("value", ["a\0b", "half \ud83d a pair", "\udc00"])
def test_nul_and_half_surrogate_pairs_are_refused(server, photo, name, value):
    body = {"main_face_image": photo, "prompt": "p"} | {name: value}
    refused(server.client.post("/v1/flux-pulid", content=json.dumps(body)), name)


@pytest.mark.parametrize(
    "prompt", ["", "🙂 \u202e مرحبا <|endoftext|> </s> ", "\x01\x7f\n\t", "e\u0301" * 500]
)
def test_any_other_unicode_reaches_the_engine_unchanged(server, prompt):
    assert server.paint(prompt=prompt).status_code == 200
    assert server.engine.last_request.prompt == prompt


def test_prompts_have_a_longest_length_from_the_settings(run_server):
    with run_server(max_prompt_chars=10) as server:
        assert server.paint(prompt="x" * 10, negative_prompt="y" * 10).status_code == 200
        for name in ("prompt", "negative_prompt"):
            assert "at most 10 characters" in refused(server.paint(**{name: "x" * 11}), name)


def test_without_a_seed_each_call_draws_a_fresh_one_of_32_bits(server):
    drawn = set()
    for given in ({}, {"seed": None}, {"seed": -1}, {"seed": "-1"}, {"seed": ""}, {"seed": " "}):
        response = server.paint(**given)
        seed = server.engine.last_request.seed
        assert response.headers["x-seed-value"] == str(seed)
        assert 0 <= seed < 2**32
        drawn.add(seed)
    assert len(drawn) == 6


def test_zero_is_a_seed_and_the_header_repeats_it(server):
    assert server.paint(seed=0).headers["x-seed-value"] == "0"
    assert server.engine.last_request.seed == 0


@pytest.mark.parametrize("value", [True, "true", 1])
def test_the_base64_switch_takes_what_clients_send(server, value):
    assert server.paint(base64=value).headers["content-type"] == "application/json"


def test_the_base64_switch_is_no_number_in_general(server):
    assert "true or false" in refused(server.paint(base64=7), "base64")


# beyond the contract


def asked(**fields):
    body = {"main_face_image": "AAAA", "prompt": "p", "seed": 1} | fields
    return parse_body(json.dumps(body).encode(), max_prompt_chars=100).request


def test_without_the_fields_beyond_the_contract_the_request_is_the_contracts():
    contracts = GenerationRequest(prompt="p", seed=1)
    assert contracts.face == LARGEST_FACE
    assert contracts.id_end_step is None
    assert asked() == contracts
    nothing = dict.fromkeys(["face_index", "face_order", "strict_face", "id_end_step"])
    assert asked(**nothing) == contracts


def test_without_the_fields_beyond_the_contract_the_picture_is_the_same(server):
    plain = server.paint(seed=1).content
    defaults = {"face_index": 0, "face_order": "largest", "strict_face": False, "id_end_step": None}
    assert server.paint(seed=1, **defaults).content == plain
    assert server.paint(seed=1, face_index=1).content != plain


@pytest.mark.parametrize("order", ["largest", "left-to-right", "central"])
def test_the_choice_of_a_face_reaches_the_engine(server, order):
    assert server.paint(face_index="2", face_order=order, strict_face=True).status_code == 200
    assert server.engine.last_request.face == FaceChoice(index=2, order=order, strict=True)


@pytest.mark.parametrize("value", [0, 7, "20"])
def test_the_end_of_the_identity_reaches_the_engine(server, value):
    assert server.paint(id_end_step=value).status_code == 200
    assert server.engine.last_request.id_end_step == int(value)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("face_index", [-1, 0.5, True, "first", []], "a whole number of at least 0"),
        ("face_order", ["smallest", "", 5, True], "one of largest, left-to-right, central"),
        ("strict_face", ["perhaps", 5, []], "true or false"),
        ("id_end_step", [-1, 21, 0.5, False, "", []], "a whole number from 0 to 20"),
    ],
)
def test_what_they_may_be_is_told(server, name, values, words):
    for value in values:
        assert refused(server.paint(**{name: value}), name) == f"{name} must be {words}."


@pytest.mark.parametrize(("prompt", "code"), [("several faces", 400), ("a foreign identity", 400)])
def test_photos_and_identities_that_are_refused_are_400_in_v1_and_failed_in_v2(server, prompt, code):
    response = server.paint(prompt=prompt)
    assert response.status_code == code
    result = server.finished(prompt=prompt)
    assert (result["status"], result["error"]) == ("FAILED", response.json()["error"])
