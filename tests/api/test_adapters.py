"""Interfaces of other services are there only where the operator says so."""

import pytest

from server.app import ADAPTERS
from server.settings import SettingsError, load_settings

ADDRESSES = {
    "openai": [("POST", "/v1/images/generations")],
    "replicate": [
        ("POST", "/predictions"),
        ("GET", f"/predictions/{'0' * 32}"),
        ("POST", "/v1/predictions"),
        ("POST", f"/v1/predictions/{'0' * 32}/cancel"),
        ("POST", "/v1/models/someone/flux-pulid/predictions"),
    ],
}
EVERY = [(name, *call) for name, calls in ADDRESSES.items() for call in calls]


def test_every_adapter_is_looked_at_here():
    assert set(ADDRESSES) == set(ADAPTERS)


@pytest.mark.parametrize(("method", "address"), [call[1:] for call in EVERY])
def test_by_default_nothing_is_at_their_addresses(server, method, address):
    response = server.client.request(method, address, json={})
    assert response.status_code == 404
    assert response.json()["error"].startswith("Nothing is at this address.")


def test_by_default_they_are_not_published(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if "predictions" in path or "images" in path]


@pytest.mark.parametrize("name", ADDRESSES)
def test_one_alone_opens_its_own_addresses_and_no_other(run_server, name):
    with run_server(adapters=(name,)) as server:
        for owner, method, address in EVERY:
            told = server.client.request(method, address, json={}).text
            assert ("Nothing is at this address." not in told) is (owner == name)


@pytest.mark.parametrize(
    ("text", "names"),
    [("openai, replicate", ("openai", "replicate")), ("openai,openai", ("openai",)), ("", ())],
)
def test_they_are_named_in_a_list(monkeypatch, text, names):
    monkeypatch.setenv("FLUX_PULID_ADAPTERS", text)
    assert load_settings().settings.adapters == names


def test_an_unknown_one_ends_the_start_with_the_known_names():
    with pytest.raises(SettingsError, match="use a list of openai, replicate"):
        load_settings(flags={"adapters": "openai,fal"})


def test_the_published_schema_describes_them(run_server):
    with run_server(adapters=("openai", "replicate")) as server:
        schema = server.client.get("/openapi.json").json()
    for _, method, address in EVERY:
        path = address.replace("0" * 32, "{prediction_id}").replace("someone/flux-pulid", "{owner}/{name}")
        operation = schema["paths"][path][method.lower()]
        assert operation["security"]
        assert {"401", "500"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
