"""docs/settings.md and the settings are the same table; every deployment example loads."""

import re
from pathlib import Path

import pytest

from pulid.profiles import PROFILES
from server.fields import allowed
from server.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = {name: rest for name, *rest in ROW.findall((ROOT / "docs/settings.md").read_text())}
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def shown(default):
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Path):
        return str(default).replace(str(Path.home()), "~")
    return str(default) if default != () else "none"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No setting of the machine the tests run on."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)


def test_the_document_lists_exactly_the_settings_there_are_in_their_order():
    assert list(ROWS) == list(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_default_and_range_are_as_documented(name):
    default, range_in_words, meaning = ROWS[name]
    assert default == shown(Settings.model_fields[name].get_default(call_default_factory=True))
    assert range_in_words == allowed(Settings, name)
    assert meaning.endswith(".")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_deployment_example_loads_and_is_listed(path):
    settings = load_settings(config=path).settings
    assert settings.profile in PROFILES
    assert f"[{path.name}]({path.name})" in (ROOT / "configs/README.md").read_text()


def test_every_setting_of_the_specification_is_there_or_known_to_be_missing():
    names = re.findall(r"^\| ([A-Z0-9_, ]+) \|", (ROOT / "docs/spec/SETTINGS.md").read_text(), re.MULTILINE)
    specified = {name.strip().lower() for cell in names for name in cell.split(",")}
    assert specified - set(Settings.model_fields) == set()
    assert set(Settings.model_fields) - specified == {"adapters", "turbo_threshold", "t5_int8"}  # beyond it


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_deployment_example_shows_what_an_operator_must_think_of(path):
    """Set, or as a comment that shows how."""
    named = set(re.findall(r"^(?:# )?(\w+) = ", path.read_text(), re.MULTILINE))
    assert named <= set(Settings.model_fields)
    assert {"profile", "devices", "host", "api_keys_file", "data_dir", "max_queued_jobs"} <= named


def test_there_is_an_example_for_every_profile():
    assert {path.stem for path in CONFIGS} == set(PROFILES)
