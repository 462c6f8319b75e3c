"""The bench's own model at its tiny scale, and all rows over it."""

from types import SimpleNamespace

import pytest
import torch

from bench.random_model import SCALES, random_parts, random_request
from bench.rows import rows_of
from pulid.profiles import PROFILES


@pytest.fixture(scope="session")
def tiny_bench():
    scale = SCALES["tiny"]
    parts = random_parts(scale, torch.device("cpu"), torch.float32)
    rows = rows_of(parts, [PROFILES["tiny"]], torch.device("cpu"), backend="eager")

    def request(**changes):
        return random_request(scale, 896, 1152, **changes)

    return SimpleNamespace(parts=parts, rows=rows, request=request)
