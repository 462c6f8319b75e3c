"""The published schema tells the truth: names, types, ranges, defaults, answers, and all of it on record.

After a change that is meant, write the record again:

    UPDATE_OPENAPI=1 python -m pytest tests/api/test_openapi.py -k record
"""

import json
import os
import re
from pathlib import Path

import pytest

from server.api.people_schemas import PersonInPicture
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
BEYOND_THE_CONTRACT = [
    *("face_index", "face_order", "strict_face", "id_end_step"),
    *("face_images", "face_fusion", "identity", "faces", "identity_similarity"),
]


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
    assert schema["required"] == ["prompt"]
    assert schema["anyOf"] == [
        {"required": [name]} for name in ("main_face_image", "face_images", "identity", "faces")
    ]
    others = {"main_face_image", "prompt", "negative_prompt", "seed", "output_format", "base64"}
    assert set(properties) == {*RANGES, *others, *BEYOND_THE_CONTRACT}


def test_the_example_is_a_valid_request(operation):
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert FluxPulidRequest.model_validate(example).prompt


def test_every_answer_of_v1_is_described(operation):
    statuses = {"200", "400", "401", "406", "409", "413", "429", "500", "503", "504"}
    assert set(operation["responses"]) == statuses
    content = list(operation["responses"]["200"]["content"])
    assert content[0] == "image/webp", "the first is what documents show, so it is the default"
    assert set(content) == {"image/webp", "image/png", "image/jpeg", "application/json"}
    assert "`<url>;" in operation["responses"]["200"]["headers"]["link"]["description"]


def test_no_two_operations_have_one_summary(document):
    summaries = [
        operation["summary"] for operations in document["paths"].values() for operation in operations.values()
    ]
    assert len(set(summaries)) == len(summaries)


def test_both_submits_take_the_same_body(document, operation):
    assert document["paths"]["/v2/flux-pulid"]["post"]["requestBody"] == operation["requestBody"]


def test_a_failed_job_is_the_only_use_of_422(document):
    uses = {
        (path, operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"])
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "422" in operation["responses"]
    }
    failed = "#/components/schemas/Failed"
    assert uses == {
        ("/v2/requests/{request_id}/status", failed),
        ("/v2/requests/{request_id}", failed),
        ("/v1/requests/{request_id}", failed),
    }
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_route_that_may_answer_401_says_which_keys_it_takes(document):
    assert set(document["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"])


def test_every_reference_inside_the_document_resolves(document):
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in text.split('"$ref": "')[1:]:
        assert reference.split('"')[0].removeprefix("#/components/schemas/") in schemas


RECORD = Path(__file__).parent / "openapi.json"


def test_the_schema_is_the_one_on_record(document):
    shown = document | {"info": document["info"] | {"version": ""}}
    if os.environ.get("UPDATE_OPENAPI"):
        RECORD.write_text(json.dumps(shown, indent=1) + "\n")
    assert json.loads(RECORD.read_text()) == shown


def answered(server, method, path, **call):
    """The body of an answer, and the schema that the document has for it."""
    response = server.client.request(method, path, **call)
    template = re.sub(r"[0-9a-f]{32}", "{request_id}", path)
    document = server.app.openapi()
    described = document["paths"][template][method.lower()]["responses"][str(response.status_code)]
    return response.json(), described["content"]["application/json"]["schema"]


def fits(document, schema, value):
    """Has the value the type and exactly the keys of the schema? As much of JSON schema as is used here."""
    if "$ref" in schema:
        return fits(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], value)
    if "anyOf" in schema:
        return any(fits(document, branch, value) for branch in schema["anyOf"])
    if schema["type"] == "array":
        return isinstance(value, list) and all(fits(document, schema["items"], item) for item in value)
    if schema["type"] != "object":
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        right = isinstance(value, kinds[schema["type"]])
        return right and value in schema.get("enum", [value]) and value == schema.get("const", value)
    if "additionalProperties" in schema:
        return all(fits(document, schema["additionalProperties"], item) for item in value.values())
    properties = schema.get("properties", {})
    return (
        isinstance(value, dict)
        and set(value) <= set(properties)
        and set(schema.get("required", ())) <= set(value)
        and all(fits(document, properties[name], item) for name, item in value.items())
    )


def test_answers_have_the_form_that_is_announced(gated, photo):
    body = {"main_face_image": photo, "prompt": "p", "width": 256, "height": 256, "num_steps": 2}
    calls = [("POST", "/v2/flux-pulid", {"json": body})]
    first, second, broken = (gated.submit(**extra).json()["request_id"] for extra in ({}, {}, {"width": 1}))
    gated.engine.wait_for(lambda: len(gated.engine.admitted) == 1)
    for job_id in (first, second, broken):
        calls += [("GET", f"/v2/requests/{job_id}/status", {}), ("GET", f"/v1/requests/{job_id}", {})]
    calls += [
        ("GET", f"/v2/requests/{'0' * 32}", {}),
        ("POST", "/v1/flux-pulid", {"json": body | {"seed": []}}),
    ]
    calls += [("POST", "/v1/faces", {"json": {"image": photo}}), ("POST", "/v1/faces", {"json": {}})]
    calls += [("POST", "/v1/identities", {"json": {}})]
    calls += [("GET", "/health", {}), ("GET", "/ready", {}), ("GET", "/v1/get-user-credits", {})]
    answers = [answered(gated, method, path, **call) for method, path, call in calls]
    gated.engine.open_gate()
    gated.wait_for_status(second, "COMPLETED")
    answers += [answered(gated, "GET", f"/v2/requests/{second}{tail}") for tail in ("", "/status")]
    answers += [answered(gated, "DELETE", f"/v2/requests/{second}")]
    for value, schema in answers:
        assert fits(gated.app.openapi(), schema, value), (schema, value)
    assert not fits(gated.app.openapi(), answers[0][1], {"request_id": 5})


def test_the_parameter_table_of_the_documentation_is_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    tables = [
        part.split("\n\n")[0] for part in text.split("| name | default | allowed |\n|---|---|---|\n")[1:]
    ]
    lines = "\n".join(tables).splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    assert [name for name, _, _ in rows] == list(FluxPulidRequest.model_fields)
    assert [line.split("`")[1] for line in tables[1].splitlines()] == BEYOND_THE_CONTRACT
    for name, default, range_in_words in rows:
        assert range_in_words == allowed(FluxPulidRequest, name)
        field = FluxPulidRequest.model_fields[name]
        words = {"main_face_image": "required", "negative_prompt": "a list of faults", "seed": "random"}
        words |= {"base64": "false", "strict_face": "false", "identity_similarity": "false"}
        default_in_words = "none" if field.default is None else str(field.default)
        assert default == ("required" if field.is_required() else words.get(name, default_in_words))


def test_the_table_of_people_in_the_documentation_is_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    table = text.split("| field | default | allowed |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [name for name, _, _ in rows] == list(PersonInPicture.model_fields)
    for name, default, range_in_words in rows:
        assert range_in_words == allowed(PersonInPicture, name)
        known = PersonInPicture.model_fields[name].default
        assert default == ("none" if known is None else str(known))
