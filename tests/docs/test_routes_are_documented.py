"""docs/api.md names the routes, the error statuses and the metrics there are, and no others."""

import re

import pytest
from fastapi.routing import iter_route_contexts

from docs.project_files import text_of
from server.app import create_app
from server.errors import STATUS
from server.metrics import STAGES, Metrics
from server.settings import Settings

TEXT = text_of("docs/api.md")
PARTS_OF_PAGES = {("GET", "/docs/{asset}"), ("GET", "/page/{asset}")}
FROM_THE_ROUTER = {405}  # statuses that no job and no error class has
FROM_THE_ORIGIN_RULES = {403}
FROM_OUTCOMES = {422}
NEVER_SEEN = {499}  # the client has left


def rows_under(header):
    """The cells of the table that begins with this line."""
    table = TEXT.split(f"{header}\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return create_app(Settings(profile="tiny", data_dir=tmp_path_factory.mktemp("data")))


def routes_of(app):
    return {
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        for method in context.methods
        if method != "HEAD"
    }


def test_the_table_of_routes_has_every_route_and_no_other(app):
    written = [tuple(cell.strip("`").split()) for cell, _ in rows_under("| route | what it does |")]
    assert len(written) == len(set(written))
    assert set(written) == routes_of(app) - PARTS_OF_PAGES


def test_the_published_schema_has_every_route_of_the_table(app):
    published = {
        (method.upper(), path) for path, operations in app.openapi()["paths"].items() for method in operations
    }
    pages = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}
    assert published == routes_of(app) - PARTS_OF_PAGES - pages


def test_the_table_of_errors_has_every_status():
    written = {int(status) for status, _ in rows_under("| status | when |")}
    others = FROM_THE_ROUTER | FROM_THE_ORIGIN_RULES | FROM_OUTCOMES
    assert written == {*STATUS.values(), *others} - NEVER_SEEN


def test_every_status_a_route_announces_is_in_the_table_of_errors(app):
    written = {status for status, _ in rows_under("| status | when |")}
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            assert set(operation["responses"]) - {"200"} <= written


def test_the_table_of_metrics_has_every_metric_with_its_labels():
    written = {
        name.strip("`"): set(re.findall(r"`(\w+)`", labels))
        for name, labels, _ in rows_under("| metric | labels | counts |")
    }
    assert written == labels_of_all_metrics()


def labels_of_all_metrics():
    """Every metric, after everything that can be told was told once."""
    metrics = Metrics()
    metrics.answered(method="GET", route="/health", code=200, key="", seconds=0.1)
    metrics.jobs.submitted("v1")
    metrics.jobs.ended("FAILED", "no_face")
    metrics.jobs.cache_lookup("identity", hit=True)
    metrics.jobs.device_known("cuda:0")
    metrics.jobs.device_memory("cuda:0", 1)
    metrics.stands(ready=True, workers={"cuda:0": True}, capacity=64, free=2**30, writable=True)
    found = {}
    for line in metrics.text().decode().splitlines():
        sample = re.match(r"(\w+?)(_bucket|_count|_sum)?(?:\{(.*)\})? ", line)
        if sample and not line.startswith("#") and not sample[1].endswith("_created"):
            labels = re.findall(r'(\w+)="', sample[3] or "")
            found.setdefault(sample[1], set()).update(set(labels) - {"le"})
    return found


def test_the_stages_are_named_in_their_order():
    row = next(row for row in rows_under("| metric | labels | counts |") if "stage_seconds" in row[0])
    assert row[2] == ", ".join(STAGES)
