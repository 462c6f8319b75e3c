"""The tests of the job service, unchanged, with records in PostgreSQL and files in a shared folder."""

import pytest

import jobs.serving
import jobs.test_drains
import jobs.test_service
import jobs.test_several_photos
import jobs.test_watching
from server.jobs.places import SharedPlaces

OF_ONE_FOLDER = {
    "test_files_of_unknown_jobs_are_cleared_at_start",  # another server may be about to know them
    # A server that ends gives its jobs back, and keeps no photos of them.
    "test_a_job_that_waited_when_the_server_ended_has_its_photos_in_the_next_one",
}

pytestmark = pytest.mark.release  # a minute


@pytest.fixture(autouse=True)
def shared(monkeypatch, database):
    def shared_places(tmp_path, devices):
        (tmp_path / "shared").mkdir(exist_ok=True)
        return SharedPlaces(
            database_url=database, media_url=f"file://{tmp_path}/shared", devices=len(devices)
        )

    monkeypatch.setattr(jobs.serving, "shared_places", shared_places)


globals().update(
    {
        name: test
        for module in (jobs.test_service, jobs.test_drains, jobs.test_several_photos, jobs.test_watching)
        for name, test in vars(module).items()
        if name.startswith("test_") and name not in OF_ONE_FOLDER
    }
)
