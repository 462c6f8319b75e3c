"""What is said about the database and the folder that several servers share."""

import time

import psycopg
import pytest

from server.checks.shared import check_database, check_media, shared
from server.jobs.places import MediaPlaceUnusable, SharedPlaces
from server.jobs.postgres_schema import unusable
from server.jobs.postgres_store import PostgresJobStore
from server.settings import Settings


@pytest.fixture
def places(database, tmp_path):
    (tmp_path / "shared").mkdir()
    return SharedPlaces(database_url=database, media_url=f"file://{tmp_path}/shared", devices=1)


def test_of_a_server_that_shares_nothing_nothing_is_said(tmp_path):
    assert list(shared(Settings(data_dir=tmp_path))) == []


def test_an_empty_database_and_a_new_folder_are_fine_and_stay_as_they_are(places, tmp_path):
    settings = Settings(database_url=places.database_url, media_url=places.media_url)
    assert [(found.check, found.state) for found in shared(settings)] == [("database", "ok"), ("media", "ok")]
    assert list((tmp_path / "shared").iterdir()) == []
    assert "first start makes the tables" in check_database(places.look_at_database()).text


def test_a_folder_that_is_not_there_is_a_fault(places, tmp_path):
    (tmp_path / "shared").rmdir()
    found = check_media(places, None)
    assert (found.state, "Mount it" in found.text) == ("fault", True)
    with pytest.raises(MediaPlaceUnusable, match="Mount it"):
        places.open_bodies()


@pytest.mark.parametrize("has_bodies", [False, True])
def test_another_place_than_that_of_the_other_servers_is_a_fault(places, database, tmp_path, has_bodies):
    places.open_store("a").close()
    (tmp_path / "elsewhere").mkdir()
    elsewhere = SharedPlaces(database_url=database, media_url=f"file://{tmp_path}/elsewhere", devices=1)
    if has_bodies:
        elsewhere.open_bodies()
    agreed = elsewhere.look_at_database().place
    assert check_media(places, agreed).state == "ok"
    found = check_media(elsewhere, agreed)
    assert (found.state, "place-id is missing" in found.text) == ("fault", True)


def test_tables_of_this_version_are_fine_and_of_a_newer_one_a_fault(places):
    PostgresJobStore.open(places.database_url, name="a", places=1, lease_s=60).close()
    found = check_database(places.look_at_database())
    assert (found.state, "version 1" in found.text) == ("ok", True)
    with psycopg.connect(places.database_url, autocommit=True) as connection:
        connection.execute("UPDATE flux_pulid_schema SET version = 99")
    found, _ = shared(Settings(database_url=places.database_url, media_url=places.media_url))
    assert (found.state, "schema 99" in found.text) == ("fault", True)


@pytest.mark.parametrize("has_tables", [False, True])
def test_a_user_who_may_not_write_is_a_fault(places, database, has_tables):
    if has_tables:
        PostgresJobStore.open(database, name="a", places=1, lease_s=60).close()
    schema = database.rpartition("%3D")[2]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"DROP ROLE IF EXISTS reader_{schema}")
        connection.execute(f"CREATE ROLE reader_{schema} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO reader_{schema}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader_{schema}")
    reader = SharedPlaces(
        database_url=database.replace("postgres@", f"reader_{schema}@"), media_url="file:///x", devices=1
    )
    found = check_database(reader.look_at_database())
    assert (found.state, "may not write" in found.text) == ("fault", True)


def test_a_database_that_does_not_answer_is_a_fault_without_its_password(tmp_path):
    address = "postgresql://flux:secret-word@127.0.0.1:1/flux"
    settings = Settings(database_url=address, media_url=f"file://{tmp_path}")
    database, _ = shared(settings)
    assert database.state == "fault"
    assert "Connection refused" in database.text
    assert "secret-word" not in database.text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("SSL error: certificate verify failed\n", "SSL_CERT_FILE"),
        ("Is the server accepting TCP/IP connections?", "connections. Look whether it runs"),
    ],
)
def test_what_the_driver_says_comes_with_what_helps(said, words):
    assert words in str(unusable(psycopg.OperationalError(said)))


def test_a_clock_that_is_wrong_is_worth_a_warning(places, monkeypatch):
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 60)
    found = check_database(places.look_at_database())
    assert (found.state, "60 seconds behind" in found.text) == ("warning", True)


def test_a_folder_that_takes_no_file_is_a_fault(places, tmp_path):
    (tmp_path / "shared" / "bodies").touch()
    found = check_media(places, None)
    assert (found.state, "cannot be written" in found.text) == ("fault", True)


def test_a_folder_that_is_in_use_is_left_as_it_is(places, tmp_path):
    places.open_bodies()
    assert check_media(places, None).state == "ok"
    assert list((tmp_path / "shared" / "bodies").iterdir()) == []


def test_without_the_extra_the_command_that_installs_it_is_told(places, monkeypatch):
    monkeypatch.setattr("server.jobs.places.find_spec", lambda name: None)
    settings = Settings(database_url=places.database_url, media_url=places.media_url)
    [found] = shared(settings)
    assert (found.state, "pip install" in found.text) == ("fault", True)
