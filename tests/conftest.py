"""Shared fixtures. Imports the torchvision guard before any test module imports diffusers or timm."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pulid.torchvision_guard  # noqa: F401

# isort: split

from cluster.postgres_server import PostgresServer

# A shell ignores Ctrl-C for what it starts in the background, and a process hands that on to its
# children: the servers and commands of these tests would never hear one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # a socket's path has 107 signs at most
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "s")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The address of an empty database."""
    return postgres.new_database()
