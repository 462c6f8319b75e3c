"""docs/api.md names the routes that adapters open, and no others."""

import pytest
from fastapi.routing import iter_route_contexts

from docs.project_files import text_of
from server.app import ADAPTERS, create_app
from server.settings import Settings

HEADER = "| route of an adapter | what it does |\n"


def routes_with(folder, *adapters):
    app = create_app(Settings(profile="tiny", data_dir=folder, adapters=adapters))
    return {(method, route.path) for route in iter_route_contexts(app.routes) for method in route.methods}


def test_the_table_has_every_route_that_adapters_add_and_no_other(tmp_path):
    rows = text_of("docs/api.md").split(HEADER)[1].split("\n\n")[0].splitlines()[1:]
    written = {tuple(row.split("|")[1].strip(" `").split()) for row in rows}
    assert written == routes_with(tmp_path, *ADAPTERS) - routes_with(tmp_path)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_named_where_it_can_be_set(name):
    [row] = [line for line in text_of("docs/settings.md").splitlines() if line.startswith("| `adapters` |")]
    assert name in row
    assert f"`{name}`" in text_of("docs/api.md")
