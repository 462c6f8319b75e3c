"""The tests of the stock Segmind SDK, unchanged, with the tiny profile on Ray."""

from collections.abc import Iterator

import pytest

import clients.test_segmind_sdk
from cluster.ray_server import RayServer, ray_server
from live_server import portrait

KEY = "SG_0123456789abcdef"

pytestmark = [pytest.mark.release, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    settings = {"profile": "tiny", "auth": "keys", "api_keys": f"tests:{KEY}"}
    with ray_server(tmp_path_factory.mktemp("sdk"), settings) as live:
        yield live


@pytest.fixture(scope="module")
def api_key() -> str:
    return KEY


@pytest.fixture(scope="module")
def small() -> dict[str, object]:
    return {
        "main_face_image": portrait(),
        "prompt": "portrait of a woman",
        "width": 256,
        "height": 256,
        "num_steps": 1,
        "seed": 7,
    }


connect, client = clients.test_segmind_sdk.connect, clients.test_segmind_sdk.client
globals().update(
    {name: test for name, test in vars(clients.test_segmind_sdk).items() if name.startswith("test_")}
)
