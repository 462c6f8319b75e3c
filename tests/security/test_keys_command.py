"""`flux-pulid keys`: what is printed, what is in the file, who may read it."""

import hashlib
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.keys import app
from server.security.auth import ApiKeys
from server.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No setting of the machine the tests run on."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def added(name, path):
    """Add a key; the key."""
    done = run("add", name, "--file", path)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(path):
    done = run("add", "alice", "--file", path)
    key = done.stdout.strip()
    assert re.fullmatch(r"SG_[0-9a-f]{32}", key)
    assert path.read_text() == f"alice {hashlib.sha256(key.encode()).hexdigest()}\n"
    assert "not shown again" in done.stderr
    assert "SIGHUP" in done.stderr
    assert key not in done.stderr


def test_an_added_key_is_one_the_server_knows(path):
    alice, bob = added("alice", path), added("bob", path)
    keys = ApiKeys(file=path)
    assert (keys.identify(alice), keys.identify(bob)) == ("alice", "bob")
    assert alice != bob


def test_only_the_owner_may_read_the_file_whatever_it_was_before(path):
    added("alice", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    added("bob", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["keys"], "nothing is left beside it"


def test_comments_stay_and_a_link_stays_a_link(path, tmp_path):
    path.write_text("# people\n\n")
    link = tmp_path / "link"
    link.symlink_to(path)
    added("alice", link)
    assert link.is_symlink()
    assert path.read_text().startswith("# people\n\nalice ")


def test_a_name_is_taken_once(path):
    added("alice", path)
    before = path.read_text()
    done = run("add", "alice", "--file", path)
    assert done.exit_code == 2
    assert "a key named alice already" in done.stderr
    assert done.stdout == ""
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "a\nb", "ä", "#a", "x" * 65])
def test_a_name_that_cannot_be_is_refused(path, name):
    done = run("add", "--file", path, "--", name)
    assert done.exit_code == 2
    assert "1 to 64 letters" in done.stderr
    assert not path.exists()


def test_list_shows_names_and_nothing_else(path):
    path.write_text("# people\n")
    added("bob", path)
    added("alice", path)
    done = run("list", "--file", path)
    assert (done.exit_code, done.stdout) == (0, "bob\nalice\n")


def test_a_removed_key_is_out_of_the_file_and_the_others_stay(path):
    path.write_text("# alice and bob\n")
    alice, bob = added("alice", path), added("bob", path)
    done = run("remove", "alice", "--file", path)
    assert done.exit_code == 0
    assert "SIGHUP" in done.stderr
    keys = ApiKeys(file=path)
    assert (keys.identify(alice), keys.identify(bob)) == (None, "bob")
    assert path.read_text().startswith("# alice and bob\nbob ")


def test_removing_an_unknown_key_is_an_error(path):
    added("alice", path)
    done = run("remove", "bob", "--file", path)
    assert done.exit_code == 2
    assert "no key named bob" in done.stderr


@pytest.mark.parametrize("command", [["add", "bob"], ["list"], ["remove", "alice"]])
def test_a_broken_file_is_named_and_left_as_it_is(path, command):
    path.write_text("alice secret-in-clear\n")
    done = run(*command, "--file", path)
    assert done.exit_code == 2
    assert "Line 1" in done.stderr
    assert "secret" not in done.output
    assert path.read_text() == "alice secret-in-clear\n"


def test_the_setting_names_the_file(path, monkeypatch):
    monkeypatch.setenv("FLUX_PULID_API_KEYS_FILE", str(path))
    assert run("add", "alice").exit_code == 0
    assert run("list").stdout == "alice\n"


def test_without_a_file_the_command_says_how_to_name_one():
    done = run("list")
    assert done.exit_code == 2
    assert "--file FILE" in done.stderr


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    done = run("add", "alice", "--file", tmp_path / "none" / "keys")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
    assert done.stdout == "", "no key that is in no file"


def test_commands_at_the_same_time_lose_nothing(path):
    program = "import sys; from server.cli.keys import app; app(sys.argv[1:])"
    names = [f"name-{number}" for number in range(4)]
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", program, "add", name, "--file", path], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for name in names
    ]
    assert [command.wait() for command in commands] == [0] * len(commands)
    assert set(ApiKeys(file=path).names) == set(names)
