"""Where settings come from, which place wins, and what is said about a wrong one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError, describe, load_settings

LORA_FORM = "a list of files, each as path or path:scale, such as film.safetensors:0.8"


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
        ("profile", "fast", "one of exact, fp8, turbo, lowvram-24g, lowvram-16g, lowvram-12g, tiny, auto"),
        ("devices", "gpu", "all, cpu, cpu,cpu and so on, or numbers of GPUs such as 0,1"),
        ("devices", "all,cpu", "all, cpu, cpu,cpu and so on, or numbers of GPUs such as 0,1"),
        ("devices", "cpu,0", "all, cpu, cpu,cpu and so on, or numbers of GPUs such as 0,1"),
        ("devices", "0,", "all, cpu, cpu,cpu and so on, or numbers of GPUs such as 0,1"),
        ("public_url", "flux.example.com", "an http(s) address such as https://flux.example.com"),
        ("public_url", "ftp://flux.example.com", "an http(s) address such as https://flux.example.com"),
        ("public_url", "https://a/?x=1", "an http(s) address such as https://flux.example.com"),
        ("public_url", "https://user@a/", "an http(s) address such as https://flux.example.com"),
        ("public_url", "https://a:99999", "an http(s) address such as https://flux.example.com"),
        ("metrics_public", "maybe", "true or false"),
        ("v1_response", "both", "one of bytes, json"),
        ("rate_limit", "-1", "a whole number from 0 to 1000000"),
        ("drain_s", "-1", "a number from 0 to 86400"),
        ("cors_origins", "app.example", "*, or a list of origins such as https://app.example.com"),
        ("cors_origins", "https://app.example/x", "*, or a list of origins such as https://app.example.com"),
        ("face_mode", "two", "one of one-face, reference"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("auth", "open", "one of keys, none"),
        ("fetch_allow", "photos.internal", "a list of host:port, such as photos.internal:8080"),
        ("fetch_allow", "http://a:80", "a list of host:port, such as photos.internal:8080"),
        ("base_model", "flux1-schnell", "one of flux1-dev, flux1-krea-dev"),
        ("pulid_version", "0.9.1", "one of v0.9.1, v0.9.0"),
        ("turbo_threshold", "1.5", "a number from 0 to 1"),
        ("turbo_threshold", "-0.1", "a number from 0 to 1"),
        ("lora", "a.safetensors:strong", LORA_FORM),
        ("lora", "a.safetensors:nan", LORA_FORM),
        ("lora", "a.safetensors:", LORA_FORM),
        ("lora", ":0.5", LORA_FORM),
    ],
)
def test_a_bad_value_is_named_with_its_key_its_range_and_its_place(monkeypatch, config, key, value, allowed):
    said = f"{key} = '{value}' (from {{}}) is not valid: use {allowed}."
    assert message(flags={key: value}) == said.format(f"the flag --{key.replace('_', '-')}")
    path = config(f'{key} = "{value}"')
    assert message(config=path) == said.format(f"the key {key} in {path}")
    monkeypatch.setenv(f"FLUX_PULID_{key.upper()}", value)
    assert message() == said.format(f"the environment variable FLUX_PULID_{key.upper()}")


def test_a_bad_address_in_a_list_is_named(config):
    said = "is not valid: use a list of addresses or networks, such as 127.0.0.1,10.0.0.0/8."
    assert message(flags={"trusted_proxies": "::1,proxy.internal"}) == (
        f"trusted_proxies = 'proxy.internal' (from the flag --trusted-proxies) {said}"
    )


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
def test_beyond_this_machine_the_server_needs_keys_or_permission_in_so_many_words(host):
    text = message(flags={"host": host})
    assert host in text
    assert "no API keys" in text
    assert "api_keys_file" in text
    assert 'auth to "none"' in text
    for open_or_keyed in ({"auth": "none"}, {"api_keys": "k"}, {"api_keys_file": "keys"}):
        assert load_settings(flags={"host": host, **open_or_keyed}).settings.host == host
    with pytest.raises(ValidationError):
        Settings(host=host)


@pytest.mark.parametrize(
    ("given", "needs_key"),
    [
        ({}, False),
        ({"api_keys": "k"}, True),
        ({"api_keys_file": "keys"}, True),
        ({"api_keys": "k", "auth": "none"}, False),
        ({"api_keys": "k", "auth": "keys"}, True),
    ],
)
def test_a_key_is_asked_for_where_there_are_keys_unless_auth_says_none(given, needs_key):
    assert load_settings(flags=given).settings.needs_key is needs_key


def test_auth_by_keys_needs_keys():
    assert message(flags={"auth": "keys"}) == (
        'auth is "keys", but there are none. Set api_keys or api_keys_file.'
    )


def test_every_page_may_call_only_where_there_are_keys():
    assert load_settings(flags={"cors_origins": "*", "api_keys": "k"}).settings.cors_origins == ("*",)
    for without_keys in ({}, {"auth": "none", "api_keys": "k"}):
        assert "needs API keys" in message(flags={"cors_origins": "*", **without_keys})
    listed = load_settings(flags={"cors_origins": "https://App.example/, http://localhost:3000"})
    assert listed.settings.cors_origins == ("https://app.example", "http://localhost:3000")


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


def test_a_lora_has_a_path_and_a_scale(monkeypatch, tmp_path, config):
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = ((tmp_path / "film.safetensors", 0.8), (Path("b.safetensors"), 1.0), (Path("c:d"), -1.0))
    text = "~/film.safetensors:0.8, b.safetensors,c:d:-1"
    assert load_settings(flags={"lora": text}).settings.loras == wanted
    listed = config(f"lora = {[part.strip() for part in text.split(',')]}")
    assert load_settings(config=listed).settings.loras == wanted


@pytest.mark.parametrize("key", ["weights_dir", "data_dir", "api_keys_file"])
def test_the_home_folder_is_expanded(monkeypatch, tmp_path, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(load_settings(flags={key: "~/x"}).settings, key) == tmp_path / "x"


def test_folders_follow_the_users_conventions(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    settings = load_settings().settings
    assert settings.weights_dir == tmp_path / "cache" / "flux-pulid"
    assert settings.data_dir == tmp_path / "data" / "flux-pulid"


@pytest.mark.parametrize(
    ("given", "devices"), [("0, 1", "0,1"), ("cpu,cpu", "cpu,cpu"), ("all", "all"), ("12", "12"), (0, "0")]
)
def test_devices_are_a_list_of_one_kind(given, devices):
    assert Settings(devices=given).devices == devices


@pytest.mark.parametrize("given", ["0,0", "1,0,01"])
def test_a_gpu_is_named_once(given):
    assert "names a GPU twice" in message(flags={"devices": given})


def test_a_number_in_toml_is_a_device(config):
    assert load_settings(config=config("devices = 1")).settings.devices == "1"


def test_the_public_url_has_no_slash_at_its_end():
    assert Settings(public_url="https://flux.example.com/base/").public_url == "https://flux.example.com/base"


def test_proxies_are_addresses_and_networks():
    proxies = Settings(trusted_proxies="127.0.0.1, 10.0.0.0/8, fd00::/8").trusted_proxies
    assert [str(proxy) for proxy in proxies] == ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize("profile", [None, "exact", "fp8", "tiny"])
def test_a_threshold_is_refused_where_no_steps_are_skipped(monkeypatch, config, profile):
    named = {} if profile is None else {"profile": profile}
    said = (
        f"turbo_threshold = 0.2 is for the profile turbo: {profile or 'exact'} skips no steps. "
        "Leave turbo_threshold out, or choose the profile turbo."
    )
    assert message(flags={"turbo_threshold": "0.2", **named}) == said
    assert message(flags=named, config=config("turbo_threshold = 0.2")) == said
    monkeypatch.setenv("FLUX_PULID_TURBO_THRESHOLD", "0.2")
    assert message(flags=named) == said


@pytest.mark.parametrize("threshold", [0, 0.05, 1])
def test_a_threshold_is_taken_by_turbo(config, threshold):
    path = config(f'profile = "turbo"\nturbo_threshold = {threshold}')
    assert load_settings(config=path).settings.turbo_threshold == threshold
    assert load_settings(flags={"profile": "turbo"}).settings.turbo_threshold is None


def test_beside_an_unknown_profile_a_threshold_says_nothing_more():
    assert len(message(flags={"profile": "fast", "turbo_threshold": "0.2"}).splitlines()) == 1


@pytest.mark.parametrize("profile", [None, "exact", "tiny"])
def test_t5_in_int8_is_refused_where_nothing_else_is_in_8_bits(monkeypatch, config, profile):
    named = {} if profile is None else {"profile": profile}
    said = (
        f"t5_int8 = true is for profiles that compute in 8 bits: {profile or 'exact'} does not. "
        "Leave t5_int8 out, or choose the profile fp8."
    )
    assert message(flags={"t5_int8": "true", **named}) == said
    assert message(flags=named, config=config("t5_int8 = true")) == said
    monkeypatch.setenv("FLUX_PULID_T5_INT8", "1")
    assert message(flags=named) == said
    assert not load_settings(flags={"t5_int8": "false", **named}).settings.t5_int8


@pytest.mark.parametrize("profile", ["fp8", "turbo", "lowvram-24g", "lowvram-16g", "lowvram-12g", "auto"])
def test_t5_in_int8_is_taken_by_the_others(config, profile):
    path = config(f'profile = "{profile}"\nt5_int8 = true')
    assert load_settings(config=path).settings.t5_int8
    assert not load_settings(flags={"profile": profile}).settings.t5_int8


def test_beside_an_unknown_profile_t5_in_int8_says_nothing_more():
    assert len(message(flags={"profile": "fast", "t5_int8": "true"}).splitlines()) == 1


SECRET = "SG_zebra-in-a-tutu"


@pytest.mark.parametrize("key", [f"{SECRET} x", f"a b:{SECRET}", f":{SECRET}", f"{SECRET}:", f"{SECRET}é", 7])
def test_a_key_that_cannot_be_is_refused_without_being_shown(monkeypatch, config, key):
    said = "is not valid: use a list of name:key, or keys, in visible ASCII characters."
    assert message(flags={"api_keys": key}) == f"api_keys = (hidden) (from the flag --api-keys) {said}"
    path = config(f"api_keys = [{key!r}]")
    assert message(config=path) == f"api_keys = (hidden) (from the key api_keys in {path}) {said}"
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys=key)
    assert SECRET not in str(caught.value)


def test_keys_may_be_text_with_commas_or_a_list_and_are_never_shown(monkeypatch, config):
    monkeypatch.setenv("FLUX_PULID_API_KEYS", f"alice:{SECRET}, other,")
    for loaded in (load_settings(), load_settings(config=config(f'api_keys = ["alice:{SECRET}", "other"]'))):
        assert [key.get_secret_value() for key in loaded.settings.api_keys] == [f"alice:{SECRET}", "other"]
        assert SECRET not in repr(loaded) + describe(loaded)
        assert "**********, **********" in describe(loaded)


def test_the_description_shows_each_value_and_its_place():
    flags = {"port": "81", "fetch_allow": "a:1,b:2", "v2_strict": "true"}
    lines = describe(load_settings(flags=flags)).splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert list(shown) == list(Settings.model_fields)
    assert shown["port"].split(maxsplit=1) == ["81", "the flag --port"]
    assert shown["fetch_allow"].split("  ")[0] == "a:1, b:2"
    assert shown["v2_strict"].split(maxsplit=1) == ["true", "the flag --v2-strict"]
    assert shown["profile"].split("  ")[0] == "(not set)"


@pytest.mark.parametrize("name", ["exact", "tiny"])
def test_the_examples_give_a_call_as_much_time_as_its_job(name):
    """A large picture takes minutes on a CPU."""
    settings = load_settings(config=Path(__file__).parents[2] / "configs" / f"{name}.toml").settings
    assert settings.v1_timeout_s >= settings.job_deadline_s
