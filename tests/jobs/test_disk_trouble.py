"""A disk or a database that does not take a write: nothing accepted is lost, and it passes."""

import asyncio
import base64
import errno
import os
import resource
import select
import sys
import tracemalloc
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

from jobs.serving import PICTURE, data_of, locked_database, png, scenario, stored_states, until
from server.jobs.job import JobNotFound, JobRecord, JobState, StoreFailed
from server.jobs.storage import JobStorage

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits of a process, pipes with names")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("server.jobs.store._BUSY_S", 0.05)


# the database


@scenario
async def test_an_end_that_the_database_does_not_take_is_written_once_it_does(start):
    async with start(gated=True) as here:
        job_id = await here.submit()
        await until(lambda: stored_states(here) == ["PROCESSING"])
        with locked_database(here):
            here.script.open_gate()
            assert (await here.ended(job_id)).state is JobState.COMPLETED, "its caller hears of it"
            assert stored_states(here) == ["PROCESSING"]
        await until(lambda: stored_states(here) == ["COMPLETED"])
        await until(lambda: job_id not in here.service._runner.live)
        assert list(data_of(here).bodies.iterdir()) == []


@scenario
async def test_a_submit_that_the_database_does_not_take_leaves_nothing_and_is_not_counted(start):
    async with start() as here:
        with locked_database(here):
            for api in ("v1", "v2"):
                with pytest.raises(StoreFailed, match="cannot be written"):
                    await here.submit(api=api)
            with pytest.raises(StoreFailed):
                await here.submit(refuse="this v2 body is not valid")
        assert stored_states(here) == []
        assert list(data_of(here).bodies.iterdir()) == []
        assert here.service.unfinished_of("") == 0
        for api in ("v1", "v2"):
            assert here.registry.get_sample_value("flux_pulid_jobs_submitted_total", {"api": api}) is None
        assert (await here.run()).state is JobState.COMPLETED


def test_a_call_that_is_painted_before_the_database_refuses_its_row_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("server.jobs.store._BUSY_S", 1.0)

    @scenario
    async def test(start):
        async with start() as here:
            with locked_database(here):
                submitting = asyncio.create_task(here.submit(api="v1"))
                await until(lambda: any(job.end_task for job in here.service._runner.live.values()))
                with pytest.raises(StoreFailed, match="cannot be written"):
                    await submitting
            await until(lambda: not any(data_of(here).media.iterdir()))
            assert list(data_of(here).bodies.iterdir()) == []
            assert here.service.unfinished_of("") == 0
            assert stored_states(here) == []
            assert (await here.run(api="v1")).state is JobState.COMPLETED

    test(tmp_path)


def test_a_call_that_is_painted_before_its_row_is_written_ends_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr("server.jobs.store._BUSY_S", 5.0)

    @scenario
    async def test(start):
        async with start() as here:
            with locked_database(here):
                submitting = asyncio.create_task(here.submit(api="v1"))
                await until(lambda: any(job.end_task for job in here.service._runner.live.values()))
                assert not submitting.done()
                assert stored_states(here) == []
            assert (await here.ended(await submitting)).state is JobState.COMPLETED
            assert stored_states(here) == ["COMPLETED"]

    test(tmp_path)


@scenario
async def test_a_failed_write_is_a_reason_not_to_be_ready_until_one_succeeds(start):
    async with start() as here:
        with locked_database(here), pytest.raises(StoreFailed):
            await here.submit()
        assert here.service.not_ready_reason == "its data folder cannot be written"
        await here.submit()
        assert here.service.not_ready_reason is None


@scenario
async def test_without_a_submit_the_server_finds_out_itself_that_writes_succeed_again(start):
    async with start() as here:
        with locked_database(here):
            with pytest.raises(StoreFailed):
                await here.submit()
            await here.service._storage.probe()
            assert here.service.not_ready_reason is not None
        await until(lambda: here.service.not_ready_reason is None)


# photos


def noise_photo(pixels=600):
    noise = np.random.default_rng(1).integers(0, 255, (pixels, pixels, 3), np.uint8)
    return base64.b64encode(png(Image.fromarray(noise))).decode()


@contextmanager
def files_up_to(size):
    """This process may write no larger file, as on a disk with little room."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


@linux_only
@scenario
async def test_a_photo_that_finds_no_room_waits_on_disk_and_not_in_memory(start):
    photo = noise_photo()
    async with start(gated=True, photo=photo) as here:
        job_id = await here.submit(num_steps=1)
    # The next server has the body on its disk, and no room for the photo.
    with files_up_to(len(photo) // 2):
        tracemalloc.start()
        async with start() as here:
            await until(lambda: here.service._storage.failing)
            await asyncio.sleep(0.5)  # it is tried again after two seconds
            held, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert most > len(photo)
            assert held < len(photo) / 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert (await here.ended(job_id)).state is JobState.COMPLETED


@linux_only
@scenario
async def test_a_call_of_v1_whose_photo_finds_no_room_hears_so(start):
    async with start(photo=noise_photo()) as here:
        with files_up_to(500_000):
            assert (await here.run(api="v1")).error_code == "storage_full"
        assert (await here.run(api="v1")).state is JobState.COMPLETED


@scenario
async def test_a_photo_that_was_sent_waits_for_no_photo_that_is_fetched(start):
    async with start() as here:
        here.photos.gate.clear()
        for number in range(12):
            await here.submit("fetched", photo=f"https://slow.example/{number}.png")
        assert (await here.run("sent")).state is JobState.COMPLETED
        here.photos.gate.set()


class SlowFile:
    """A file that is longer in the writing than a pipe holds: who writes it goes on when it is read."""

    def __init__(self, path):
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    @property
    def is_begun(self):
        return bool(select.select([self._reader], [], [], 0)[0])

    async def let_go_on(self, size):
        while size:
            with suppress(BlockingIOError):
                size -= len(os.read(self._reader, size))
            await asyncio.sleep(0)
        os.close(self._reader)


@linux_only
@scenario
async def test_a_job_that_is_cancelled_while_its_photo_is_written_leaves_none(start):
    photo = base64.b64decode(noise_photo())
    async with start(picture=photo) as here:
        here.photos.gate.clear()
        job_id = await here.submit(photo="https://slow.example/photo.png")
        file = SlowFile(data_of(here).bodies / f"{job_id}.photo.0.tmp")
        here.photos.gate.set()
        await until(lambda: file.is_begun)
        await here.service.remove(job_id, key="")
        await file.let_go_on(len(photo))
        await until(lambda: not list(data_of(here).bodies.iterdir()))


@linux_only
@scenario
async def test_photos_that_found_room_before_their_body_found_none_are_deleted(start):
    large = noise_photo(2000)
    async with start() as here:
        with files_up_to(len(large) // 2):
            for _ in range(3):  # a small photo is on the disk long before the body has failed
                with pytest.raises(StoreFailed):
                    await here.submit(photos=[here.photo, large])
        await until(lambda: not list(data_of(here).bodies.iterdir()))
        assert here.service.unfinished_of("") == 0


# bodies


@linux_only
def test_a_large_body_on_its_way_to_disk_keeps_nobody_from_the_database(tmp_path):
    record = JobRecord(id="a" * 32, key="", api="v2", submitted_at=0.0, deadline_at=0.0, media_id="b" * 32)

    async def run():
        storage = JobStorage(tmp_path, min_free_bytes=0)
        await storage.open()
        file = SlowFile(tmp_path / "bodies" / f"{record.id}.json.tmp")
        body = b" " * 1_000_000
        writing = asyncio.create_task(storage.insert(record, body, idempotency_key=None, keep_body=True))
        await until(lambda: file.is_begun)
        async with asyncio.timeout(5):
            assert await storage.get(record.id) is None, "the row comes after the body"
        await file.let_go_on(len(body))
        with pytest.raises(StoreFailed):  # a pipe cannot be synced
            await writing
        assert await storage.get(record.id) is None
        await storage.close()

    asyncio.run(run())


# pictures that nobody could ever see


@scenario
async def test_a_job_that_fails_leaves_no_pictures_of_a_worker_that_was_killed_before_it_told(start):
    async with start(gated=True) as here:
        job_id = await here.submit()
        await here.processing(job_id)
        record = (await here.service.view(job_id, key="")).record
        folder = data_of(here).media / record.media_id
        folder.mkdir()
        (folder / "0.png").write_bytes(PICTURE)
        assert (await here.service.remove(job_id, key="")).record.state is JobState.FAILED
        await until(lambda: not folder.exists())


@scenario
async def test_pictures_that_would_not_go_go_with_the_next_sweep(start):
    async with start() as here:
        records = [await here.run(name, num_steps=1) for name in ("first", "second")]
        folders = [data_of(here).media / record.media_id for record in records]
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr("server.jobs.files.shutil.rmtree", refuse)
            for record in records:
                await here.service.remove(record.id, key="")
        assert list(data_of(here).media.iterdir())
        await JobStorage.sweep(here.service._storage, result_ttl_s=3600)
        assert not list(data_of(here).media.iterdir())
        assert not any(folder.exists() for folder in folders)


def refuse(folder):
    raise OSError(errno.EMFILE, "Too many open files")


@scenario
async def test_pictures_that_come_after_their_record_was_deleted_are_deleted(start):
    async with start(gated=True) as here:
        job_id = await here.submit(width=1536, height=1536, num_outputs=4, num_steps=1)
        await here.processing(job_id)
        here.script.open_gate()
        await until(lambda: here.script.steps.get(job_id) == 1)
        media = data_of(here).media
        await until(lambda: list(media.iterdir()))  # it is writing: nobody can stop it any more
        await here.service.remove(job_id, key="")
        with suppress(JobNotFound):  # it may have been COMPLETED by then, and is deleted already
            await here.service.remove(job_id, key="")
        assert (await here.run("next", num_steps=1)).state is JobState.COMPLETED
        await until(lambda: len(list(media.iterdir())) == 1)
