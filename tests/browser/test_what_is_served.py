"""The page's files over HTTP: all from this server, under a strict policy, and only those."""

from __future__ import annotations

import re

import pytest

FILES = re.compile(r'(?:src|href)="(page/[^"]+)"')
IMPORTS = re.compile(r'from "\./([\w-]+\.js)"')


def test_every_file_of_the_page_is_there_and_of_its_type(server):
    waiting = FILES.findall(server.client.get("/").text)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = server.client.get(f"/{name}")
        assert answer.status_code == 200, name
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
        assert answer.headers["content-type"].partition(";")[0] == kind
        waiting += [f"page/{found}" for found in IMPORTS.findall(answer.text)]
    assert {"page/main.js", "page/api.js", "page/style.css", "page/icon.svg"} <= seen


def test_the_policy_allows_this_server_and_no_markup_made_of_text(server):
    answer = server.client.get("/")
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_nothing_in_the_page_is_inline(server):
    text = server.client.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_the_page_knows_how_large_a_request_may_be(server, keyed_server):
    assert 'data-max-body-bytes="32000000"' in server.client.get("/").text
    assert 'data-max-body-bytes="60000"' in keyed_server.client.get("/").text


def test_the_page_itself_needs_no_key(keyed_server):
    assert keyed_server.client.get("/").status_code == 200
    assert keyed_server.client.get("/page/main.js").status_code == 200


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_a_file_that_the_browser_has_is_not_sent_again(server, path):
    first = server.client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = server.client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.client.get(path, headers={"if-none-match": '"another"'}).status_code == 200


@pytest.mark.parametrize("name", ["index.html", "docs.js", "docs.html", "..%2findex.html", "nothing.js"])
def test_only_the_files_of_the_page_are_served(server, name):
    assert server.client.get(f"/page/{name}").status_code == 404
