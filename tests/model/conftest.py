"""The tiny engine, shared by all tests of a run: building it is cheap, importing it is not."""

import pytest

from pulid.tiny import tiny_engine


@pytest.fixture(scope="session")
def engine():
    return tiny_engine()
