"""docs/parameters.md has every field of a request, with default and range; what it says of pairs is true."""

import json

import pytest

from docs.markdown import blocks, tables
from docs.project_files import text_of
from live_server import live_server, portrait
from pulid.engine import DEFAULT_NEGATIVE_PROMPT
from server.api.people_schemas import PersonInPicture
from server.api.v1_schemas import FluxPulidRequest
from server.fields import allowed

TEXT = text_of("docs/parameters.md")
ROWS = {row[0].strip("`"): row[1:] for row in tables(TEXT, "| parameter | default | allowed |")}
PERSON = {row[0].strip("`"): row[1:] for row in tables(TEXT, "| field of a person | default | allowed |")}
IN_WORDS = {"seed": "random", "negative_prompt": "a list of faults"}
SMALL = {"prompt": "portrait", "width": 256, "height": 256, "num_steps": 4, "seed": 1}
SAME = [row[:2] for row in tables(TEXT, "| this | is the same as |")]
OTHER = [row[:2] for row in tables(TEXT, "| this | is another picture than |")]


def shown_default(model, name):
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    default = IN_WORDS.get(name, field.default)
    return str(default).lower() if isinstance(default, bool) else str("none" if default is None else default)


def fields_of_both():
    both = ((FluxPulidRequest, ROWS), (PersonInPicture, PERSON))
    return [pytest.param(model, name, rows, id=name) for model, rows in both for name in model.model_fields]


def test_every_parameter_is_there_once_and_no_other():
    assert set(ROWS) == set(FluxPulidRequest.model_fields)
    assert set(PERSON) == set(PersonInPicture.model_fields)
    assert len(ROWS) == len(tables(TEXT, "| parameter | default | allowed |"))


@pytest.mark.parametrize(("model", "name", "rows"), fields_of_both())
def test_default_and_range_are_the_real_ones(model, name, rows):
    default, range_in_words, meaning = rows[name]
    assert default == shown_default(model, name)
    assert range_in_words == allowed(model, name)
    assert meaning.endswith(".")


def test_the_default_negative_prompt_is_quoted():
    assert f"{DEFAULT_NEGATIVE_PROMPT}\n" in blocks(TEXT, "text")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The bytes of the picture that some parameters, as JSON in backticks, give beside small ones."""
    photo = portrait()
    with live_server(tmp_path_factory.mktemp("server") / "data", profile="tiny") as server:
        made = server.client.post("/v1/identities?response_format=json", json={"main_face_image": photo})
        identity = made.json()["identity"]

        def paint(parameters):
            text = parameters.strip("`").replace("PHOTO", photo).replace("IDENTITY", identity)
            given = json.loads(text)
            main = {} if {"faces", "identity"} & given.keys() else {"main_face_image": photo}
            body = {**main, **SMALL, **given}
            answer = server.client.post("/v1/flux-pulid", json=body)
            assert answer.status_code == 200, answer.text
            return answer.content

        yield paint


@pytest.mark.parametrize(("this", "that"), SAME)
def test_pairs_that_are_called_the_same_are(picture, this, that):
    assert picture(this) == picture(that)


@pytest.mark.parametrize(("this", "that"), OTHER)
def test_pairs_that_are_called_different_are(picture, this, that):
    assert picture(this) != picture(that)
