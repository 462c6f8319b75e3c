"""A stand-in for the Hub, and an environment that knows no other."""

import pytest

from fetching.small_model import Watcher
from hub_server import hub_server
from server.settings import Settings
from staged_weights import QUICK


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No setting and no token of the machine the tests run on."""
    names = [f"FLUX_PULID_{name.upper()}" for name in Settings.model_fields]
    for name in (*names, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("weights.download.RETRY_AFTER_S", QUICK)


@pytest.fixture
def hub(monkeypatch):
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def home(tmp_path):
    """A weights folder that does not exist yet."""
    return tmp_path / "models"


@pytest.fixture
def watcher():
    return Watcher()
