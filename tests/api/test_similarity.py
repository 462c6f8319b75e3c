"""How much a picture looks like the photo: told where it was asked for, and nowhere else."""

import pytest

from fakes import colour_of, own_part
from server.api.similarity import HEADER, for_header, for_json

TWO = "alike 0.7 none"


def of(seed, base=0.7):
    """What the engine says of the picture with this seed, on the wire."""
    return round(base + own_part(colour_of(seed)), 4)


def test_the_header_has_pictures_between_commas_and_people_between_semicolons():
    assert for_header(((0.71234, None), (-0.05, 0.4))) == "0.7123;none, -0.0500;0.4000"
    assert for_header(((), (None,))) == "none, none"


def test_in_json_every_picture_has_a_list_and_nothing_asked_is_nothing_told():
    assert for_json(((0.71234, None), ())) == [[0.7123, None], []]
    assert for_json(()) is None


@pytest.mark.parametrize("form", ["bytes", "json"])
def test_both_forms_of_v1_have_it_in_a_header(server, form):
    answer = server.paint(
        f"/v1/flux-pulid?response_format={form}", prompt=TWO, seed=5, num_outputs=2, identity_similarity=True
    )
    assert answer.headers[HEADER] == f"{of(5):.4f};none, {of(6):.4f};none"
    if form == "json":
        assert answer.json()["identity_similarity"] == [[of(5), None], [of(6), None]]


def test_a_job_tells_it_with_its_end_and_with_its_result(server):
    result = server.finished(prompt=TWO, seed=5, num_outputs=2, identity_similarity=True)
    expected = [[of(5), None], [of(6), None]]
    assert result["identity_similarity"] == expected
    status = server.status(result["request_id"]).json()
    assert (status["status"], status["identity_similarity"]) == ("COMPLETED", expected)


@pytest.mark.parametrize("asked", [{}, {"identity_similarity": False}, {"identity_similarity": None}])
def test_who_does_not_ask_gets_the_plain_contract(server, asked):
    assert HEADER not in server.paint(prompt=TWO, **asked).headers
    assert "identity_similarity" not in server.paint(prompt=TWO, base64=True, **asked).json()
    result = server.finished(prompt=TWO, **asked)
    assert set(result) == {
        "status",
        "request_id",
        "error",
        "seed",
        "metrics",
        "output",
        "images",
        "timings",
    }
    assert set(server.status(result["request_id"]).json()) == {"status", "request_id", "metrics"}
    assert not server.engine.last_request.measures_similarity


def test_a_likeness_that_cannot_be_measured_is_none(server):
    answer = server.paint(prompt="raise over the likeness", identity_similarity=True)
    assert (answer.status_code, answer.headers[HEADER]) == (200, "none")


def test_web_pages_may_read_the_header(keyed_server):
    headers = {"origin": "https://pages.example", "x-api-key": "alice-key"}
    answer = keyed_server.paint(headers=headers, identity_similarity=True)
    assert HEADER in answer.headers["access-control-expose-headers"]
    assert answer.headers[HEADER] == f"{of(answer_seed(answer), 0.5):.4f}"


def answer_seed(answer):
    return int(answer.headers["x-seed-value"])


def test_a_value_that_is_neither_true_nor_false_is_refused(server):
    answer = server.paint(identity_similarity="perhaps")
    assert answer.status_code == 400
    assert answer.json()["fields"][0]["field"] == "identity_similarity"
