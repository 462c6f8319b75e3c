"""Routes, settings and other names in backticks exist, in every page that is about this server as it is.

Not read: the specifications and the pages about moving here, which speak of other services too, and the
decisions and the change log, which speak of other days.
"""

import ast
import re

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path

from docs.markdown import blocks
from docs.project_files import PACKAGES, ROOT, documents, text_of
from server.app import create_app
from server.settings import Settings

ELSEWHERE = ("docs/spec/", "docs/decisions/", "docs/moving-from-", "tests/", "CHANGELOG.md")
PAGES = [name for name in documents() if not name.startswith(ELSEWHERE)]
METHODS = "GET|HEAD|POST|DELETE"
ROUTE = re.compile(rf"`({METHODS}) (/[^`?\s]*)[^`]*`|^#+ ({METHODS}) (/\S*)$", re.MULTILINE)
ADDRESS = re.compile(r"https?://(?:127\.0\.0\.1|localhost):8000(/(?:[^\s\"'`<>?)]|<[^>]*>)*)")
BASES = ("/v1", "/v2", "/json/v1")  # that clients are given
ENVIRONMENT = re.compile(r"\bFLUX_PULID_([A-Z][A-Z_]*[A-Z])\b")
# Without process_...: metrics of prometheus_client's own.
WORD = re.compile(r"`(?!process_)([a-z][a-z0-9]*(?:_[a-z0-9]+)+)`")
METRIC_ENDS = ("_total", "_info", "_bucket", "_sum", "_count")  # that the format adds
# Names that are others': of formats, programs and headers that operators and callers meet.
OF_OTHERS = {
    "run_sync",  # Segmind's SDK
    "b64_json",
    "extra_body",  # OpenAI's
    "cfg_scale",
    "id_start",  # words that docs/architecture.md rules out
    "proxy_request_buffering",  # nginx
    "flush_interval",  # Caddy
    "http_options",  # Ray Serve's
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    # With every interface that can be switched on.
    adapters = {"adapters": "openai,replicate"} if "adapters" in Settings.model_fields else {}
    return create_app(Settings(profile="tiny", data_dir=folder, **adapters))


@pytest.fixture(scope="module")
def routes(app):
    return [(context.methods, compile_path(context.path)[0]) for context in iter_route_contexts(app.routes)]


def is_served(routes, path, method=None):
    path = re.sub(r"<[^>]*>|\.\.\.", "x", path.removeprefix("/json") or "/").rstrip("/.,;") or "/"
    return any(
        pattern.match(path) and (method is None or method in methods or (method, "GET") == ("HEAD", "GET"))
        for methods, pattern in routes
    )


@pytest.mark.parametrize("name", PAGES)
def test_every_route_that_is_named_is_served(routes, name):
    named = [(match[1] or match[3], match[2] or match[4]) for match in ROUTE.finditer(text_of(name))]
    assert not [(method, path) for method, path in named if not is_served(routes, path, method)]


@pytest.mark.parametrize("name", PAGES)
def test_every_address_of_the_server_in_an_example_is_served(routes, name):
    paths = [path.rstrip("/.,;") for path in ADDRESS.findall(text_of(name))]
    assert not [path for path in paths if path not in BASES and not is_served(routes, path)]


def test_a_route_that_is_not_there_would_be_noticed(routes):
    assert is_served(routes, "/v2/requests/{request_id}", "DELETE")
    assert not is_served(routes, "/v2/requests/{request_id}", "POST")
    assert not is_served(routes, "/v3/flux-pulid", "POST")


@pytest.mark.parametrize("name", [*PAGES, "compose.yaml", "Dockerfile", "configs/exact.toml"])
def test_every_variable_of_ours_is_a_setting(name):
    assert {word.lower() for word in ENVIRONMENT.findall(text_of(name))} <= set(Settings.model_fields)


def names_in_the_code():
    """Every identifier and every word of every text of the packages: settings, fields, codes, metrics."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        found.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text())):
            names = (getattr(node, kind, None) for kind in ("id", "attr", "arg", "name", "value"))
            for text in (name for name in names if isinstance(name, str)):
                found |= set(re.findall(r"\w+", text))
    return found | {f"{name}{end}" for name in found for end in METRIC_ENDS}


@pytest.fixture(scope="module")
def known():
    return names_in_the_code() | OF_OTHERS


@pytest.mark.parametrize("name", PAGES)
def test_every_name_with_an_underscore_is_known_to_the_code(known, name):
    """A setting or field that was renamed is found here, in whichever page it was left behind."""
    assert not set(WORD.findall(text_of(name))) - known


@pytest.mark.parametrize("name", PAGES)
def test_every_line_of_settings_in_an_example_is_one(name):
    keys = {
        key
        for block in blocks(text_of(name), "toml")
        for key in re.findall(r"^(\w+) = ", block, re.MULTILINE)
    }
    assert keys <= set(Settings.model_fields)


def test_a_renamed_setting_would_be_noticed(known):
    assert set(WORD.findall("`max_queued_jobs` `max_waiting_jobs`")) - known == {"max_waiting_jobs"}
