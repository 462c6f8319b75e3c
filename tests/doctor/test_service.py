"""What is said about the data folder, the disk, and who may call."""

import sqlite3
from contextlib import closing

import pytest

from server.checks import service
from server.checks.service import check_access, check_data_dir, check_disk, schema_of
from server.jobs.data_dir import DataDir
from server.jobs.store import SqliteJobStore
from server.settings import Settings


def test_a_folder_that_does_not_exist_yet_is_fine_and_is_not_made(tmp_path):
    folder = DataDir(tmp_path / "a" / "b")
    assert check_data_dir(folder).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_a_fault_and_stays_in_use(tmp_path):
    other = DataDir(tmp_path)
    other.open()
    found = check_data_dir(DataDir(tmp_path))
    assert found.state == "fault"
    assert f"Another server uses the data folder {tmp_path}" in found.text
    other.close()
    assert check_data_dir(DataDir(tmp_path)).state == "ok"


def test_a_look_at_the_lock_does_not_keep_a_server_from_it(tmp_path):
    DataDir(tmp_path).open()
    folder = DataDir(tmp_path / "mine")
    folder.open()
    folder.close()
    assert check_data_dir(folder).state == "ok"
    folder.open()
    folder.close()


def test_a_file_where_the_folder_should_be_is_a_fault(tmp_path):
    (tmp_path / "file").touch()
    found = check_data_dir(DataDir(tmp_path / "file" / "data"))
    assert found.state == "fault"
    assert "--data-dir" in found.text


def test_a_database_of_this_version_is_fine_and_of_a_newer_one_a_fault(tmp_path):
    folder = DataDir(tmp_path)
    SqliteJobStore.open(folder.database).close()
    assert schema_of(folder.database) > 0
    assert check_data_dir(folder).state == "ok"
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("PRAGMA user_version = 4711")
    found = check_data_dir(folder)
    assert found.state == "fault"
    assert "schema 4711" in found.text


def test_a_database_that_cannot_be_read_is_a_fault_in_words(tmp_path):
    folder = DataDir(tmp_path)
    folder.database.mkdir()
    found = check_data_dir(folder)
    assert found.state == "fault"
    assert "cannot be read: Is a directory" in found.text


@pytest.mark.parametrize(("free", "state"), [(10**8, "warning"), (10**9, "warning"), (10**10, "ok")])
def test_room_that_runs_out_is_worth_a_warning(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(service, "free_bytes", lambda folder: free)
    found = check_disk(tmp_path / "not" / "there")
    assert found.state == state
    assert ("refused" in found.text) is (free < 2**28)


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, ["ok"]),
        ({"api_keys": "a:b"}, ["ok"]),
        ({"host": "192.168.1.5", "auth": "none"}, ["warning"]),
        ({"host": "192.168.1.5", "auth": "none", "api_keys": "a:b"}, ["warning", "warning"]),
        ({"api_keys_file": "/nowhere/keys"}, ["fault"]),
    ],
)
def test_who_may_call_is_told_with_every_caution(settings, states):
    assert [found.state for found in check_access(Settings(**settings))] == states
