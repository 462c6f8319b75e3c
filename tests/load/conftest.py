"""One real server on the tiny profile for all load tests, with a key for the crowd and one for a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from live_server import ServerProcess, live_server

CROWD_KEY = "SG_00000000000c40d0"
GUEST_KEY = "SG_0000000000000e57"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process that must also end well after all that."""
    with live_server(
        tmp_path_factory.mktemp("load") / "data",
        profile="tiny",
        api_keys=f"crowd:{CROWD_KEY},guest:{GUEST_KEY}",
    ) as live:
        yield live


@pytest.fixture(scope="session")
def crowd_key() -> str:
    return CROWD_KEY


@pytest.fixture(scope="session")
def guest_key() -> str:
    return GUEST_KEY
