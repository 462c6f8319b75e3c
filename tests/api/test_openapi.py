"""The published schema tells the truth about v1: names, types, ranges, defaults, answers."""

import json
from pathlib import Path

import pytest

from server.api.v1_schemas import FluxPulidRequest
from server.fields import allowed

RANGES = {
    "width": ("integer", 896, 256, 1536),
    "height": ("integer", 1152, 256, 1536),
    "num_steps": ("integer", 20, 1, 20),
    "start_step": ("integer", 0, 0, 10),
    "guidance_scale": ("number", 4, 1, 10),
    "id_weight": ("number", 1.05, 0, 3),
    "true_cfg": ("number", 1, 1, 10),
    "max_sequence_length": ("integer", 128, 128, 512),
    "num_outputs": ("integer", 1, 1, 4),
    "output_quality": ("integer", 80, 1, 100),
}


@pytest.fixture(scope="module")
def document(server):
    return server.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operation(document):
    return document["paths"]["/v1/flux-pulid"]["post"]


@pytest.fixture(scope="module")
def properties(operation):
    return operation["requestBody"]["content"]["application/json"]["schema"]["properties"]


@pytest.mark.parametrize("name", RANGES)
def test_each_number_shows_its_type_default_and_range(properties, name):
    shown = properties[name]
    assert (shown["type"], shown["default"], shown["minimum"], shown["maximum"]) == RANGES[name]


def test_the_seed_may_be_null_and_has_its_range(properties):
    assert properties["seed"]["anyOf"] == [
        {"type": "integer", "minimum": -1, "maximum": pytest.approx(2**63 - 1)},
        {"type": "null"},
    ]


def test_formats_and_required_fields_are_shown(operation, properties):
    assert properties["output_format"]["enum"] == ["png", "jpg", "webp"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["main_face_image", "prompt"]
    others = {"main_face_image", "prompt", "negative_prompt", "seed", "output_format", "base64"}
    assert set(properties) == {*RANGES, *others}


def test_every_answer_is_described(operation):
    assert set(operation["responses"]) == {"200", "400", "406", "413", "429", "500", "503", "504"}
    assert set(operation["responses"]["200"]["content"]) == {
        "image/webp",
        "image/png",
        "image/jpeg",
        "application/json",
    }


def test_every_reference_inside_the_document_resolves(document):
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in text.split('"$ref": "')[1:]:
        assert reference.split('"')[0].removeprefix("#/components/schemas/") in schemas


def test_the_paths_are_those_that_exist(document):
    assert set(document["paths"]) == {"/v1/flux-pulid", "/health", "/ready"}


def test_the_parameter_table_of_the_documentation_is_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    table = text.split("| name | default | allowed |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [name for name, _, _ in rows] == list(FluxPulidRequest.model_fields)
    for name, default, range_in_words in rows:
        assert range_in_words == allowed(FluxPulidRequest, name)
        field = FluxPulidRequest.model_fields[name]
        words = {"negative_prompt": "a list of faults", "seed": "random", "base64": "false"}
        assert default == ("required" if field.is_required() else words.get(name, str(field.default)))
