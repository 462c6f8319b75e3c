"""Where settings come from, which place wins, and what is said about a wrong one."""

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError, describe, load_settings


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No setting of the machine the tests run on."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)


@pytest.fixture
def config(tmp_path):
    """Write a settings file."""

    def write(text):
        path = tmp_path / "x.toml"
        path.write_text(text)
        return path

    return write


def message(**places):
    with pytest.raises(SettingsError) as caught:
        load_settings(**places)
    return str(caught.value)


def test_flags_beat_the_environment_beats_the_file_beats_the_default(monkeypatch, config):
    path = config("port = 1\nmax_queued_jobs = 1\nv1_timeout_s = 1\n")
    monkeypatch.setenv("FLUX_PULID_PORT", "2")
    monkeypatch.setenv("FLUX_PULID_MAX_QUEUED_JOBS", "2")
    loaded = load_settings(flags={"port": "3"}, config=path)
    settings = loaded.settings
    assert (settings.port, settings.max_queued_jobs, settings.v1_timeout_s) == (3, 2, 1)
    assert settings.credits == 1_000_000
    assert loaded.origins["port"] == "the flag --port"
    assert loaded.origins["max_queued_jobs"] == "the environment variable FLUX_PULID_MAX_QUEUED_JOBS"
    assert loaded.origins["v1_timeout_s"] == f"the key v1_timeout_s in {path}"
    assert loaded.origins["credits"] == "default"


def test_settings_built_directly_read_no_environment(monkeypatch):
    monkeypatch.setenv("FLUX_PULID_PORT", "2")
    assert Settings().port == 8000


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_an_empty_environment_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("FLUX_PULID_PROFILE", "")
    assert load_settings().settings.profile is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("port", "80a", "a whole number from 0 to 65535"),
        ("port", "70000", "a whole number from 0 to 65535"),
        ("fetch_timeout_s", "0", "a number above 0 and at most 300"),
        ("fetch_timeout_s", "nan", "a number above 0 and at most 300"),
        ("max_queued_jobs", "1.5", "a whole number from 1 to 10000"),
        ("v1_timeout_s", "inf", "a number above 0 and at most 86400"),
        ("profile", "fast", "one of exact, tiny"),
        ("devices", "gpu", "all, cpu, or the number of one GPU"),
        ("face_mode", "two", "one of one-face, reference"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("auth", "keys", '"none"'),
        ("fetch_allow", "photos.internal", "a list of host:port, such as photos.internal:8080"),
        ("fetch_allow", "http://a:80", "a list of host:port, such as photos.internal:8080"),
    ],
)
def test_a_bad_value_is_named_with_its_key_its_range_and_its_place(monkeypatch, config, key, value, allowed):
    said = f"{key} = '{value}' (from {{}}) is not valid: use {allowed}."
    assert message(flags={key: value}) == said.format(f"the flag --{key.replace('_', '-')}")
    path = config(f'{key} = "{value}"')
    assert message(config=path) == said.format(f"the key {key} in {path}")
    monkeypatch.setenv(f"FLUX_PULID_{key.upper()}", value)
    assert message() == said.format(f"the environment variable FLUX_PULID_{key.upper()}")


def test_a_toml_boolean_is_no_number(config):
    assert "port = 'True'" in message(config=config("port = true"))


def test_all_bad_values_are_named_at_once():
    assert len(message(flags={"port": "x", "credits": "y", "log_level": "z"}).splitlines()) == 3


def test_an_unknown_key_in_a_file_is_named_with_the_nearest_known_one(config):
    path = config("prot = 1")
    assert message(config=path) == f"Unknown setting: the key prot in {path}. Did you mean port?"


def test_an_unknown_environment_variable_is_named(monkeypatch):
    monkeypatch.setenv("FLUX_PULID_MAX_QUEUE_JOBS", "1")
    assert "FLUX_PULID_MAX_QUEUE_JOBS. Did you mean FLUX_PULID_MAX_QUEUED_JOBS?" in message()
    monkeypatch.delenv("FLUX_PULID_MAX_QUEUE_JOBS")
    monkeypatch.setenv("FLUX_PULID_ZZZ", "1")
    assert "docs/settings.md" in message()


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path, config):
    absent = tmp_path / "none.toml"
    assert str(absent) in message(config=absent)
    assert "not valid TOML" in message(config=config("port 8000"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "gpu-host.internal"])  # noqa: S104
def test_beyond_this_machine_the_server_needs_permission_in_so_many_words(host):
    text = message(flags={"host": host})
    assert host in text
    assert "no API keys" in text
    assert 'auth to "none"' in text
    assert load_settings(flags={"host": host, "auth": "none"}).settings.host == host
    with pytest.raises(ValidationError):
        Settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_on_this_machine_no_permission_is_needed(host):
    assert load_settings(flags={"host": host}).settings.auth is None


@pytest.mark.parametrize(
    "given", ["Photos.internal:8080, [fd00::1]:80", "Photos.internal:8080,[fd00::1]:80,,"]
)
def test_a_list_may_be_text_with_commas(monkeypatch, given):
    monkeypatch.setenv("FLUX_PULID_FETCH_ALLOW", given)
    assert load_settings().settings.fetch_allow == ("photos.internal:8080", "[fd00::1]:80")


def test_a_list_may_be_a_toml_list(config):
    path = config('fetch_allow = ["a:1", "b:2"]')
    assert load_settings(config=path).settings.fetch_allow == ("a:1", "b:2")


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(flags={"weights_dir": "~/models"}).settings.weights_dir == tmp_path / "models"


def test_the_description_shows_each_value_and_its_place():
    lines = describe(load_settings(flags={"port": "81", "fetch_allow": "a:1,b:2"})).splitlines()
    assert [line.split()[0] for line in lines] == list(Settings.model_fields)
    assert lines[3].split(maxsplit=2) == ["port", "81", "the flag --port"]
    assert "a:1, b:2" in lines[6]
    assert "(not set)" in lines[0]
