"""Two engines, shared by all tests of a run: building them is cheap, importing them is not.

`engine` has random weights, which favour no input; `tiny` is the profile, whose model was trained.
"""

import pytest

from pulid.seeded import seeded_engine
from pulid.tiny import tiny_engine


@pytest.fixture(scope="session")
def engine():
    return seeded_engine()


@pytest.fixture(scope="session")
def tiny():
    return tiny_engine()
