"""The settings of several servers: both or neither, and no password is shown."""

import pytest

from server.app import shared_places
from server.jobs.places import MediaPlaceUnusable, SharedPlaces, folder_of
from server.settings import SettingsError, describe, load_settings

DATABASE = "postgresql://flux:secret-word@db.internal/flux"


def loaded(**flags):
    return load_settings(flags=flags)


def test_one_server_alone_shares_nothing():
    assert shared_places(loaded().settings, ("cpu",)) is None


@pytest.mark.parametrize("media_url", ["s3://pictures", "s3://pictures/a/b", "file:///srv/shared%20folder"])
def test_both_together_name_what_is_shared(media_url):
    places = shared_places(loaded(database_url=DATABASE, media_url=media_url).settings, ("a", "b"))
    assert (places.database_url, places.media_url, places.places) == (DATABASE, media_url, 4)


@pytest.mark.parametrize("one", [{"database_url": DATABASE}, {"media_url": "s3://pictures"}])
def test_one_of_the_two_is_refused(one):
    with pytest.raises(SettingsError, match="go together"):
        loaded(**one)


@pytest.mark.parametrize(
    "media_url", ["/srv/shared", "file://host/srv", "gs://pictures", "s3://", "s3://a?b=c"]
)
def test_other_places_are_refused(media_url):
    with pytest.raises(SettingsError, match="media_url"):
        loaded(database_url=DATABASE, media_url=media_url)


def test_another_database_is_refused_without_showing_its_password():
    with pytest.raises(SettingsError, match=r"database_url = \(hidden\)") as refused:
        loaded(database_url="mysql://flux:secret-word@db/flux", media_url="s3://pictures")
    assert "secret-word" not in str(refused.value)


def test_a_password_is_shown_nowhere():
    settings = loaded(database_url=DATABASE, media_url="s3://pictures")
    places = shared_places(settings.settings, ("cpu",))
    assert "secret-word" not in describe(settings) + repr(settings) + repr(places)


def test_a_folder_may_have_any_name():
    assert str(folder_of("file:///srv/shared%20folder")) == "/srv/shared folder"
    assert folder_of("s3://pictures") is None


def test_a_server_that_keeps_its_files_elsewhere_does_not_start(database, tmp_path):
    def start(folder):
        places = SharedPlaces(database_url=database, media_url=f"file://{tmp_path}/{folder}", devices=1)
        places.open_bodies()
        places.open_store("a").close()

    (tmp_path / "shared").mkdir()
    (tmp_path / "elsewhere").mkdir()
    start("shared")
    start("shared")
    with pytest.raises(MediaPlaceUnusable, match="place-id is missing"):  # not mounted, perhaps
        start("elsewhere")
    (tmp_path / "elsewhere" / "place-id").write_text("of other servers")
    with pytest.raises(MediaPlaceUnusable, match="of another place"):
        start("elsewhere")
    (tmp_path / "elsewhere" / "place-id").write_bytes((tmp_path / "shared" / "place-id").read_bytes())
    start("elsewhere")
