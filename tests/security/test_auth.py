"""API keys: which are in force, whose a call's key is, and what a refused caller hears."""

import asyncio
import hashlib
import json
import os
import signal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from server.security import auth
from server.security.auth import ApiKeys, cautions, keys_in_force
from server.settings import Settings, SettingsError

ALICE, BOB, CAROL = "SG_0123456789abcdef", "bobs-key:with-a-colon", "carols-key"


def line(name, key):
    return f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def keys_file(tmp_path):
    """Write a file of keys."""

    def write(text):
        path = tmp_path / "keys"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def events(capsys):
    """What is logged, as dictionaries."""
    structlog.reset_defaults()
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    yield lambda: [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    structlog.reset_defaults()


# which keys there are


def test_a_key_with_a_name_is_known_by_it():
    keys = ApiKeys([f"alice:{ALICE}", f"bob:{BOB}"])
    assert keys.names == ("alice", "bob")
    assert keys.identify(ALICE) == "alice"
    assert keys.identify(BOB) == "bob"


def test_a_bare_key_is_named_after_its_hash():
    name = f"key-{hashlib.sha256(CAROL.encode()).hexdigest()[:8]}"
    assert ApiKeys([CAROL]).identify(CAROL) == name


def test_keys_of_the_file_and_of_the_settings_are_in_force_together(keys_file):
    path = keys_file(f"# people\n\n{line('bob', BOB)}  {line('carol.2', CAROL)}")
    keys = ApiKeys([f"alice:{ALICE}"], file=path)
    assert [keys.identify(key) for key in (ALICE, BOB, CAROL)] == ["alice", "bob", "carol.2"]


def test_an_empty_file_lets_nobody_in(keys_file):
    assert ApiKeys(file=keys_file("# none yet\n")).identify(ALICE) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"alice {ALICE}\n", "Line 1"),
        (f"# comment\n\nalice {'0' * 63}\n", "Line 3"),
        (f"{'0' * 64}\n", "Line 1"),
        (f"a/b {'0' * 64}\n", "Line 1"),
        (f"alice {'0' * 64} more\n", "Line 1"),
        (f"{line('alice', ALICE)}{line('alice', BOB)}", "Two API keys have the name alice"),
        (f"{line('alice', ALICE)}{line('bob', ALICE)}", "The API keys alice and bob are the same"),
    ],
)
def test_a_broken_file_is_told_by_line_or_name_and_nothing_of_it_is_shown(keys_file, text, words):
    with pytest.raises(SettingsError, match=words) as caught:
        ApiKeys(file=keys_file(text))
    assert ALICE not in str(caught.value)
    assert "000" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"keys does not exist\. `flux-pulid keys add NAME --file"):
        ApiKeys(file=tmp_path / "keys")
    with pytest.raises(SettingsError, match="cannot be read"):
        ApiKeys(file=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        ApiKeys(file=tmp_path / "binary")


@pytest.mark.parametrize("given_keys", [[CAROL, CAROL], [f"a:{CAROL}", CAROL], [f"a:{CAROL}", f"a:{BOB}"]])
def test_two_keys_alike_are_an_error_that_shows_neither(given_keys):
    with pytest.raises(SettingsError) as caught:
        ApiKeys(given_keys)
    assert CAROL not in str(caught.value)


def test_a_key_of_the_settings_may_not_be_in_the_file_again(keys_file):
    with pytest.raises(SettingsError, match="The API keys a and b are the same"):
        ApiKeys([f"a:{CAROL}"], file=keys_file(line("b", CAROL)))


def test_neither_keys_nor_digests_show_in_the_representation_of_settings():
    settings = Settings(api_keys=f"alice:{ALICE}")
    assert ALICE not in repr(settings) + str(settings) + settings.model_dump_json()
    assert ALICE not in repr(vars(keys_in_force(settings)))


# comparing


@pytest.mark.parametrize("presented", [ALICE, BOB, CAROL, "wrong", "", "é", "\ud800", "x" * 10_000])
def test_every_key_is_compared_whichever_it_is(monkeypatch, presented):
    compared = []

    def counting(known, digest):
        compared.append((len(known), len(digest)))
        return known == digest

    monkeypatch.setattr(auth, "compare_digest", counting)
    ApiKeys([f"a:{ALICE}", f"b:{BOB}", f"c:{CAROL}"]).identify(presented)
    assert compared == [(32, 32)] * 3


@given(st.text())
def test_no_text_is_a_key_by_chance_or_breaks_the_comparison(presented):
    assert ApiKeys([CAROL]).identify(presented) is None or presented == CAROL


# reading the file again


def test_reload_takes_over_new_keys_and_drops_removed_ones(keys_file, events):
    keys = ApiKeys(file=keys_file(line("alice", ALICE)))
    keys_file(line("bob", BOB))
    assert keys.identify(BOB) is None
    keys.reload()
    assert (keys.identify(ALICE), keys.identify(BOB)) == (None, "bob")
    assert events()[-1] == {"source": "auth", "event": "API keys reloaded", "keys": 1, "level": "info"}


@pytest.mark.parametrize("broken", ["alice SG_1\n", None])
def test_a_broken_file_keeps_the_old_keys_and_logs_why(keys_file, events, broken):
    path = keys_file(line("alice", ALICE))
    keys = ApiKeys(file=path)
    path.unlink()
    if broken is not None:
        keys_file(broken)
    keys.reload()
    assert keys.identify(ALICE) == "alice"
    (event,) = events()
    assert event["level"] == "error"
    assert str(path) in event["reason"]
    assert "SG_1" not in json.dumps(event)


# what a caller hears


@pytest.fixture(scope="module")
def app(walled):
    return walled(api_keys=f"alice:{ALICE},bob:{BOB}")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": ALICE},
        {"X-API-Key": f" {ALICE} "},
        {"authorization": f"Bearer {ALICE}"},
        {"authorization": f"bearer  {ALICE}"},
        {"x-api-key": "", "authorization": f"Bearer {ALICE}"},
        {"x-api-key": ALICE, "authorization": "Basic eDp5"},
        {"x-api-key": ALICE, "authorization": "Bearer other", "x-initiator": "SDK-PY"},
    ],
)
def test_a_key_is_taken_from_either_header(app, headers):
    answer = app.get("/whoami", headers)
    assert answer.status_code == 200
    assert answer.json() == {"key": "alice", "noted": "alice"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "  "},
        {"authorization": "Bearer"},
        {"authorization": "Basic eDp5"},
    ],
)
def test_a_call_without_a_key_is_401_and_hears_where_it_goes(app, assert_refused, headers):
    answer = app.get("/whoami", headers)
    assert_refused(answer, 401, "x-api-key")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "zebra-in-a-tutu"},
        {"authorization": "Bearer zebra-in-a-tutu"},
        {"x-api-key": "zebra-in-a-tutu", "authorization": f"Bearer {ALICE}"},
        {"x-api-key": f"alice:{ALICE}"},
        {"x-api-key": ALICE.upper()},
        {"x-api-key": ALICE[:-1]},
        {"x-api-key": f"{ALICE}, {ALICE}"},
        {"x-api-key": "ключ".encode()},
        {"x-api-key": b"\xff\xfe"},
    ],
)
def test_a_wrong_key_is_401_with_another_text_and_is_not_repeated(app, assert_refused, headers):
    answer = app.get("/whoami", headers)
    assert_refused(answer, 401, "not valid")
    assert answer.json()["error"] != app.get("/whoami").json()["error"]
    assert "zebra" not in answer.text
    assert ALICE not in answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_routes_that_need_a_budget_need_a_key(app, assert_refused):
    assert_refused(app.post("/paint"), 401)
    assert app.post("/paint", {"x-api-key": BOB}).status_code == 200


def test_a_route_without_the_dependency_is_open(app):
    assert app.get("/health").status_code == 200


def test_without_keys_every_caller_has_the_empty_name(walled):
    assert walled().get("/whoami", {"x-api-key": "anything"}).json()["key"] == ""


def test_auth_none_does_not_ask_for_the_keys_there_are(walled):
    assert walled(auth="none", api_keys=ALICE).get("/whoami").status_code == 200


# what the operator hears


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"auth": "none"}, None),
        ({"api_keys": ALICE, "host": "0.0.0.0"}, None),  # noqa: S104
        ({"auth": "none", "host": "0.0.0.0"}, "whoever reaches the port may use the GPU"),  # noqa: S104
        ({"auth": "none", "api_keys": ALICE}, "are not asked for"),
    ],
)
def test_an_open_server_is_warned_of(settings, words):
    found = cautions(Settings(**settings), keys_in_force(Settings(**settings)))
    assert [words in caution for caution in found] == ([True] if words else [])


def test_a_server_that_lets_nobody_in_is_warned_of(keys_file):
    settings = Settings(api_keys_file=keys_file(""))
    assert "holds none" in cautions(settings, keys_in_force(settings))[0]


def test_sighup_is_enough_to_take_a_key_out_of_force(keys_file, events):
    """As the server wires it: the loop's handler is `reload`."""
    path = keys_file(line("alice", ALICE) + line("bob", BOB))
    keys = ApiKeys(file=path)

    async def scenario():
        reloaded = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: (keys.reload(), reloaded.set()))
        keys_file(line("bob", BOB))
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(reloaded.wait(), 10)
        loop.remove_signal_handler(signal.SIGHUP)

    asyncio.run(scenario())
    assert keys.identify(ALICE) is None
    assert keys.identify(BOB) == "bob"
    assert events()[-1]["event"] == "API keys reloaded"
