"""A collector, and servers that send their traces to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from fakes import Script
from live_server import ServerProcess, live_server
from tracing.collector import collecting


@pytest.fixture
def collector(monkeypatch):
    """Whatever process starts while it is there sends its spans to it, at the latest when it ends."""
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    with collecting() as (collector, address):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        yield collector


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "script").mkdir()
    return Script(tmp_path / "script")


@pytest.fixture
def serving(tmp_path) -> Callable[..., AbstractContextManager[ServerProcess]]:
    """`with serving(scripted=script) as server:`; its spans have arrived when the block is over."""
    return lambda **changes: live_server(tmp_path / "data", **changes)
