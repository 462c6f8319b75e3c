"""Jobs of several photos and of none: all are there before a job begins, and none stays after it."""

import asyncio
import base64
import resource

import numpy as np
import pytest
from PIL import Image

from jobs.serving import bodies_of, data_of, png, scenario, until
from jobs.test_disk_trouble import files_up_to, linux_only
from server.jobs.job import JobState
from server.jobs.photos import FETCHES_AT_ONCE

RED, GREEN, BLUE = (
    base64.b64encode(png(Image.new("RGB", (64, 48), colour))).decode() for colour in ("red", "green", "blue")
)
URL = "https://slow.example/photo.png"


def kinds_of_bodies(here):
    return sorted(path.name.partition(".")[2] for path in bodies_of(here))


def picture_of(here, record):
    [data] = [here.service._storage.media.read(record.media_id, file.name) for file in record.files]
    return data


@scenario
async def test_photos_reach_the_engine_in_their_order(start):
    async with start() as here:
        orders = ([RED, GREEN, BLUE], [RED, GREEN, BLUE], [BLUE, GREEN, RED], [RED, GREEN], [RED])
        pictures = [picture_of(here, await here.run(photos=photos)) for photos in orders]
        assert len(here.script.last_request.id_images) == 1
        assert pictures[0] == pictures[1]
        assert len(set(pictures)) == 4


@scenario
async def test_they_lie_beside_the_body_until_the_job_ends(start):
    async with start(gated=True) as here:
        job = await here.submit(photos=[RED, GREEN, BLUE])
        await here.processing(job)
        assert kinds_of_bodies(here) == ["json", "photo.0", "photo.1", "photo.2"]
        here.script.open_gate()
        assert (await here.ended(job)).state is JobState.COMPLETED
        assert kinds_of_bodies(here) == []


@scenario
async def test_a_job_without_photos_begins_at_once(start):
    async with start() as here:
        for api in ("v1", "v2"):
            assert (await here.run(photos=[], api=api)).state is JobState.COMPLETED
            assert here.script.last_request.id_images == ()


@scenario
async def test_photos_of_one_job_are_fetched_side_by_side_and_it_waits_for_all(start):
    async with start() as here:
        here.photos.gate.clear()
        job = await here.submit(photos=[URL, RED, URL])
        await until(lambda: kinds_of_bodies(here) == ["json", "photo.1"])
        assert here.script.prepared == []
        here.photos.gate.set()
        assert (await here.ended(job)).state is JobState.COMPLETED


@scenario
async def test_a_key_has_only_so_many_photos_fetched_at_once_over_all_its_jobs(start):
    async with start() as here:
        waiting = most = 0
        may_go_on = asyncio.Event()
        fetch = here.photos.fetch

        async def counted(url):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            await may_go_on.wait()
            try:
                return await fetch(url)
            finally:
                waiting -= 1

        here.service._runner._photos._face_stage._fetch = counted
        jobs = [await here.submit(photos=[URL] * 6) for _ in range(3)]
        await until(lambda: waiting == FETCHES_AT_ONCE)
        may_go_on.set()
        assert {(await here.ended(job)).state for job in jobs} == {JobState.COMPLETED}
        assert most == FETCHES_AT_ONCE


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize("bad", ["AAAA", "no base64"])
def test_one_photo_that_is_refused_ends_the_job_and_names_itself(tmp_path, api, bad):
    @scenario
    async def story(start):
        async with start() as here:
            here.photos.gate.clear()  # the others are on their way, or stored
            record = await here.run(photos=[RED, URL, bad, GREEN], api=api)
            assert (record.state, record.error_code) == (JobState.FAILED, "image_rejected")
            assert record.error.startswith("photos[2]: The photo")
            here.photos.gate.set()
            assert (await here.run(photos=[RED, URL])).state is JobState.COMPLETED
            assert kinds_of_bodies(here) == []
            assert here.script.prepared == ["p"]

    story(tmp_path)


@scenario
async def test_a_cancelled_job_stops_fetching_all_its_photos(start):
    async with start() as here:
        here.photos.gate.clear()
        job = await here.submit(photos=[URL] * 8)
        await here.service.remove(job, key="")
        # Their slots are free again: another job of the key gets all of them.
        again = await here.submit(photos=[URL] * 8)
        here.photos.gate.set()
        assert (await here.ended(again)).state is JobState.COMPLETED
        assert kinds_of_bodies(here) == []


@linux_only
@scenario
async def test_photos_that_find_no_room_wait_for_it_together(start):
    noise = np.random.default_rng(1).integers(0, 255, (600, 600, 3), np.uint8)
    large = base64.b64encode(png(Image.fromarray(noise))).decode()
    async with start(gated=True) as here:
        job = await here.submit(photos=[RED, large], num_steps=1)
    with files_up_to(len(large) // 2):
        async with start() as here:
            await until(lambda: here.service._storage.failing)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert (await here.ended(job)).state is JobState.COMPLETED
            assert len(here.script.last_request.id_images) == 2


@scenario
async def test_a_job_that_waited_when_the_server_ended_has_its_photos_in_the_next_one(start):
    photos = [RED, URL, BLUE]
    async with start() as here:
        right = picture_of(here, await here.run("p", photos=photos))
    async with start(gated=True) as here:
        running = await here.submit(photos=photos)
        await here.processing(running)
        waiting = await here.submit(photos=photos)
        lost = data_of(here).bodies / f"{waiting}.photo.2"
        await until(lost.exists)
    lost.unlink()
    here.script.open_gate()
    async with start() as again:
        for job in (running, waiting):
            record = await again.ended(job)
            assert record.state is JobState.COMPLETED
            assert picture_of(again, record) == right
        assert kinds_of_bodies(again) == []
