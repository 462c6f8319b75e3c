"""Which pages may call, under which names, and what address callers are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.security.origin import EXPOSED_HEADERS, origin_of

PAGE = "https://app.example"
OTHER = "https://other.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, access-control-allow-origin, x-api-key",
}
KEY = {"x-api-key": "the-key"}


@pytest.fixture(scope="module")
def keyed(walled):
    return walled(api_keys="the-key")


@pytest.fixture(scope="module")
def open_app(walled):
    return walled()


def cors_of(answer):
    return {name for name in answer.headers if name.startswith("access-control-")}


# with keys


def test_with_keys_any_page_may_call_and_read_the_headers_of_the_contract(keyed):
    answer = keyed.get("/whoami", KEY | {"origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert exposed == set(EXPOSED_HEADERS)
    assert {"x-request-id", "x-remaining-credits", "retry-after", "link"} <= exposed


@pytest.mark.parametrize(
    ("path", "status"), [("/whoami", 401), ("/none", 404), ("/paint", 405), ("/broken", 500)]
)
def test_errors_can_be_read_by_a_page_too(keyed, path, status):
    answer = keyed.get(path, {"origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "error" in answer.json()


def test_a_preflight_is_answered_without_a_key_and_allows_every_header_asked_for(keyed):
    answer = keyed.call("OPTIONS", "/paint", {"origin": PAGE, **PREFLIGHT})
    assert answer.status_code == 204
    assert answer.content == b""
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "x-request-id" in answer.headers


def test_cookies_are_never_asked_for(keyed):
    for answer in (
        keyed.get("/whoami", KEY | {"origin": PAGE}),
        keyed.call("OPTIONS", "/paint", {"origin": PAGE, **PREFLIGHT}),
    ):
        assert "access-control-allow-credentials" not in answer.headers


def test_options_without_a_page_behind_it_is_an_ordinary_request(keyed, assert_refused):
    assert_refused(keyed.call("OPTIONS", "/paint"), 405)
    assert_refused(keyed.call("OPTIONS", "/paint", {"origin": PAGE}), 405)


def test_a_caller_that_is_no_page_gets_no_cors_headers(keyed):
    assert cors_of(keyed.get("/whoami", KEY)) == set()


@pytest.mark.parametrize("host", ["evil.example", "10.1.2.3:8000", "flux.internal", "127.0.0.1"])
def test_with_keys_the_server_has_any_name(keyed, host):
    assert keyed.get("/whoami", KEY | {"host": host}).status_code == 200


# with keys and a list of origins


@pytest.fixture(scope="module")
def listed(walled):
    return walled(api_keys="the-key", cors_origins=f"{PAGE},http://localhost:3000")


def test_a_listed_page_is_named_in_the_answer(listed):
    answer = listed.get("/whoami", KEY | {"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "origin" in answer.headers["vary"].lower()
    assert listed.call("OPTIONS", "/paint", {"origin": PAGE, **PREFLIGHT}).status_code == 204


@pytest.mark.parametrize("origin", [OTHER, "null", "https://app.example.evil", "http://app.example", "*", ""])
def test_another_page_cannot_read_the_answer(listed, assert_refused, origin):
    answer = listed.get("/whoami", KEY | {"origin": origin})
    assert answer.status_code == 200, "the key allows the call; the browser keeps the page from reading it"
    assert cors_of(answer) == set()
    assert_refused(listed.call("OPTIONS", "/paint", {"origin": origin, **PREFLIGHT}), 403, "cors_origins")


def test_caches_are_told_that_the_answer_depends_on_the_page(listed):
    vary = {name.strip().lower() for name in listed.get("/varied").headers["vary"].split(",")}
    assert vary == {"accept", "origin"}


# without keys: names


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "127.8.8.8:1", "localhost", "LOCALHOST:8000", "[::1]", "[::1]:8000"],
)
def test_without_keys_the_server_answers_under_a_local_name(open_app, host):
    assert open_app.get("/whoami", {"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "192.168.1.5:8000",
        "0.0.0.0",  # noqa: S104
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1/evil.example",
        "127.0.0.1:80@evil.example",
        "127.0.0.1:x",
        "127.0.0.1:99999",
        "[::1",
        "[::::]",
        "[fd00::1]",
        "",
        " ",
        "2130706433",
        "é",
    ],
)
def test_without_keys_a_foreign_name_is_refused(open_app, assert_refused, host):
    for call in (open_app.get, open_app.post):
        assert_refused(call("/whoami", {"host": host.encode()}), 403, "public_url")


@pytest.mark.parametrize("path", ["/health", "/health/"])
def test_a_probe_may_use_any_name(open_app, path):
    assert open_app.get(path, {"host": "10.0.0.7:8000"}).status_code == 200


@pytest.mark.parametrize("path", ["/health/x", "//health", "/healthz", "/x/health", "/health?x=1/../whoami"])
def test_what_only_looks_like_a_probe_may_not(open_app, path):
    answer = open_app.get(path, {"host": "evil.example"})
    assert answer.status_code == (200 if path.startswith("/health?") else 403)


def test_the_public_url_is_a_name_of_the_server(walled, assert_refused):
    app = walled(public_url="https://flux.example.com/base", auth="none")
    assert app.get("/whoami", {"host": "flux.example.com"}).status_code == 200
    assert app.get("/whoami", {"host": "FLUX.example.com:8000"}).status_code == 200
    assert app.get("/whoami", {"host": "localhost"}).status_code == 200
    assert_refused(app.get("/whoami", {"host": "x.flux.example.com"}), 403)


# without keys: pages


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_without_keys_the_servers_own_pages_may_call(open_app, host, origin):
    answer = open_app.post("/paint", {"host": host, "origin": origin, "sec-fetch-site": "same-origin"})
    assert answer.status_code == 200
    assert cors_of(answer) == set(), "a page needs none for its own server"


@pytest.mark.parametrize(
    "origin",
    [
        PAGE,
        "null",
        "",
        "http://127.0.0.1",
        "http://127.0.0.1:8001",
        "https://127.0.0.1:8000",
        "http://localhost:8000",
        "http://127.0.0.1:8000.evil.example",
        "http://127.0.0.1:8000/",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/paint"), ("GET", "/whoami"), ("GET", "/health")])
def test_without_keys_another_page_is_refused(open_app, assert_refused, origin, method, path):
    answer = open_app.call(method, path, {"origin": origin})
    assert_refused(answer, 403, "no API keys")
    assert cors_of(answer) == set()


def test_without_keys_one_of_two_origins_being_the_own_is_not_enough(open_app, assert_refused):
    headers = [("origin", "http://127.0.0.1:8000"), ("origin", PAGE)]
    assert_refused(open_app.call("POST", "/paint", headers), 403)


def test_without_keys_a_preflight_of_another_page_is_refused(open_app, assert_refused):
    assert_refused(open_app.call("OPTIONS", "/paint", {"origin": PAGE, **PREFLIGHT}), 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
def test_a_browsers_call_from_elsewhere_is_refused_though_it_names_no_origin(open_app, assert_refused, site):
    assert_refused(open_app.post("/paint", {"sec-fetch-site": site}), 403)
    assert open_app.get("/whoami", {"sec-fetch-site": site}).status_code == 200, "a link to a page of ours"


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}])
def test_without_keys_callers_that_are_no_page_are_served(open_app, headers):
    assert open_app.post("/paint", headers).status_code == 200


def test_a_page_may_be_listed_though_there_are_no_keys(walled, assert_refused):
    app = walled(cors_origins="http://localhost:3000")
    headers = {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}
    answer = app.post("/paint", headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert app.call("OPTIONS", "/paint", headers | PREFLIGHT).status_code == 204
    assert_refused(app.post("/paint", {"origin": PAGE}), 403)


def test_the_pages_of_the_public_url_are_the_servers_own(walled):
    app = walled(public_url="https://flux.example.com")
    headers = {"host": "127.0.0.1:8000", "origin": "https://flux.example.com"}
    assert app.post("/paint", headers).status_code == 200


# the address callers are told


def base(app, headers=None, **place):
    return app.get("/base", headers, **place).json()["base"]


def test_links_begin_with_the_public_url_whatever_the_call_says(walled):
    app = walled(public_url="https://flux.example.com/base/", api_keys="k", trusted_proxies="127.0.0.1")
    assert base(app, {"host": "evil.example", "x-forwarded-host": "e"}) == "https://flux.example.com/base"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("flux.internal:8000", "http://flux.internal:8000"),
        ("FLUX.internal", "http://flux.internal"),
        ("[::1]:81", "http://[::1]:81"),
        ("flux_1:8000", "http://flux_1:8000"),
        ("evil.example/x?", "http://127.0.0.1:8000"),
        ('"><script>', "http://127.0.0.1:8000"),
        ("a b", "http://127.0.0.1:8000"),
        ("", "http://127.0.0.1:8000"),
    ],
)
def test_else_with_the_host_of_the_call_if_it_is_one(keyed, host, expected):
    assert base(keyed, {"host": host}) == expected


FORWARDED = {"host": "backend:8000", "x-forwarded-proto": "https", "x-forwarded-host": "flux.example.com"}


def test_forwarded_headers_of_strangers_do_not_count(keyed, walled):
    assert base(keyed, FORWARDED) == "http://backend:8000"
    app = walled(api_keys="k", trusted_proxies="10.0.0.0/8")
    assert base(app, FORWARDED, peer="11.0.0.1") == "http://backend:8000"


@pytest.mark.parametrize("peer", ["10.0.0.1", "10.255.0.1", "::ffff:10.0.0.1", "fd00::7"])
def test_forwarded_headers_of_a_trusted_proxy_count(walled, peer):
    app = walled(api_keys="k", trusted_proxies="10.0.0.0/8,fd00::/8")
    assert base(app, FORWARDED, peer=peer) == "https://flux.example.com"


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ({"x-forwarded-proto": "HTTPS"}, "https://backend:8000"),
        ({"x-forwarded-proto": "javascript"}, "http://backend:8000"),
        ({"x-forwarded-proto": "ws"}, "http://backend:8000"),
        ({"x-forwarded-proto": "javascript, https"}, "https://backend:8000"),
        ({"x-forwarded-host": "evil.example, flux.example.com"}, "http://flux.example.com"),
        ({"x-forwarded-host": "evil.example/x"}, "http://backend:8000"),
        ({"x-forwarded-host": "a:99999"}, "http://backend:8000"),
        ({"forwarded": "host=evil.example"}, "http://backend:8000"),
    ],
)
def test_a_trusted_proxy_is_believed_only_what_can_be_true(walled, forwarded, expected):
    app = walled(api_keys="k", trusted_proxies="127.0.0.1")
    assert base(app, {"host": "backend:8000"} | forwarded) == expected


def test_without_keys_the_name_is_the_one_a_trusted_proxy_was_called_by(walled, assert_refused):
    app = walled(trusted_proxies="127.0.0.1")
    headers = {"host": "127.0.0.1:8000", "x-forwarded-host": "evil.example"}
    assert_refused(app.get("/whoami", headers), 403)
    headers = {"host": "evil.example", "x-forwarded-host": "localhost"}
    assert_refused(app.get("/whoami", headers, peer="10.0.0.1"), 403)
    assert app.get("/whoami", headers).status_code == 200


@given(st.text(st.characters(max_codepoint=255)))
def test_no_host_header_breaks_the_server_or_gets_past_the_rules(open_app, host):
    answer = open_app.get("/base", [("host", host.encode("latin-1").replace(b"\r", b"").replace(b"\n", b""))])
    assert answer.status_code in (200, 403)
    if answer.status_code == 200:
        assert origin_of(answer.json()["base"]).startswith(
            ("http://127.", "http://localhost", "http://[::1]")
        )
