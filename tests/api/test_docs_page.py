"""/docs: everything of it comes from this server, under a strict policy."""

import re

import pytest


def test_the_page_loads_nothing_from_elsewhere(server):
    response = server.client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert len(loaded) == 4
    for address in loaded:
        asset = server.client.get(address)
        assert asset.status_code == 200
        assert asset.headers["content-type"].split(";")[0] in ("text/css", "text/javascript", "image/svg+xml")
    assert "<script>" not in response.text
    assert "<style" not in response.text


def test_the_policy_allows_this_server_and_nothing_inline(server):
    policy = server.client.get("/docs").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_script_shows_this_servers_schema(server):
    script = server.client.get("/docs/docs.js").text
    assert 'fetch("/openapi.json")' in script
    assert "validatorUrl: null" in script


@pytest.mark.parametrize(
    "asset", ["swagger-ui.js", "index.html", "docs.html", "..%2fdocs.html", "swagger-ui.css.map"]
)
def test_only_the_assets_of_the_page_are_served(server, asset):
    assert server.client.get(f"/docs/{asset}").status_code == 404
