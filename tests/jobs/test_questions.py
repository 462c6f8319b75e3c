"""Questions about photos beside jobs: bounded, answered or refused in the end, and no job pays for them."""

import asyncio
import base64
from io import BytesIO

import pytest
from PIL import Image

from fakes import photo_of
from jobs.serving import scenario, until
from pulid.engine import LARGEST_FACE
from pulid.errors import Busy, ImageRejected
from server.jobs.job import GoingDown, JobState, JobTimedOut, NotReady
from server.jobs.questions import MAX_OPEN

URL = "https://photos.test/a.png"


def photo_with(faces, order=None):
    file = BytesIO()
    Image.fromarray(photo_of(faces, order)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def faces(here, photo=None, timeout_s=20.0):
    found = await here.service.faces(photo or photo_with(2), timeout_s=timeout_s)
    return len(found.faces)


@scenario
async def test_a_question_is_answered_while_a_job_paints(start):
    async with start(gated=True) as here:
        job = await here.submit()
        await here.processing(job)
        assert await faces(here) == 2
        assert await here.state(job) is JobState.PROCESSING
        here.script.open_gate()
        assert (await here.ended(job)).state is JobState.COMPLETED


@scenario
async def test_a_question_is_no_job(start):
    async with start() as here:
        assert await faces(here) == 2
        assert here.service.unfinished_of("") == 0
        assert here.script.prepared == []


@scenario
async def test_photos_that_are_large_together_are_refused_before_they_go_through_the_pipe(start):
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr("server.jobs.questions.MAX_TOGETHER_MB", 0.0001)
        async with start() as here:
            photos = {f"face_images[{number}]": photo_with(2) for number in range(2)}
            with pytest.raises(ImageRejected, match=r"0\.0001 MB together"):
                await here.service.identity(photos, "mean", LARGEST_FACE, timeout_s=20.0)
            assert here.script.lines("asked") == []
            limits.undo()
            assert await here.service.identity(photos, "mean", LARGEST_FACE, timeout_s=20.0)


@scenario
async def test_only_a_few_are_open_photos_that_are_being_fetched_among_them(start):
    async with start() as here:
        here.photos.picture = base64.b64decode(photo_with(3))
        here.photos.gate.clear()
        waiting = [asyncio.create_task(faces(here, URL)) for _ in range(MAX_OPEN)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await faces(here)
        here.photos.gate.set()
        assert await asyncio.gather(*waiting) == [3] * MAX_OPEN
        assert await faces(here) == 2


@scenario
async def test_a_caller_who_leaves_frees_the_place_of_a_photo_that_was_not_there_yet(start):
    async with start() as here:
        here.photos.gate.clear()
        waiting = [asyncio.create_task(faces(here, URL)) for _ in range(MAX_OPEN)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await faces(here) == 2


@scenario
async def test_a_photo_that_does_not_come_in_time_is_told_and_its_place_is_free(start):
    async with start() as here:
        here.photos.gate.clear()
        for _ in range(MAX_OPEN + 1):
            with pytest.raises(JobTimedOut, match=r"within 0\.05 seconds"):
                await faces(here, URL, timeout_s=0.05)


@scenario
async def test_a_worker_that_hangs_over_a_photo_keeps_its_place_and_is_killed_once_a_job_waits(start):
    async with start(stall_floor_s=0.5) as here:
        with pytest.raises(JobTimedOut):
            await faces(here, photo_with(1, "stall"), timeout_s=0.1)
        await asyncio.sleep(1.0)
        assert len(here.script.pids) == 1, "no job waits"
        record = await here.run()
        assert (record.state, record.deaths) == (JobState.COMPLETED, 0), "the job pays nothing for it"
        assert len(here.script.pids) == 2
        assert await faces(here) == 2


@scenario
async def test_answers_do_not_save_a_worker_whose_step_hangs(start):
    async with start(stall_floor_s=0.5) as here:
        job = await here.submit("stall once at step 2", num_steps=3)
        await here.processing(job)
        asked = 0
        while len(here.script.pids) == 1:
            try:
                asked += await faces(here) == 2
            except NotReady:
                await asyncio.sleep(0.01)
        assert asked > 1
        assert (await here.ended(job)).state is JobState.COMPLETED


@scenario
async def test_a_death_over_a_photo_is_told_to_everybody_whose_question_the_worker_had(start):
    async with start() as here:
        crash = asyncio.create_task(faces(here, photo_with(1, "crash")))
        questions = here.service._runner.questions
        await until(lambda: crash.done() or any(one.device for one in questions._open.values()))
        after = asyncio.create_task(faces(here, photo_with(2)))
        for task in (crash, after):
            with pytest.raises(NotReady, match="Try again"):
                await task
        with pytest.raises(NotReady):
            await faces(here)
        await until(lambda: here.service.not_ready_reason is None)
        assert await faces(here) == 2


@scenario
async def test_a_job_that_was_painted_beside_a_deadly_photo_is_painted_again(start):
    async with start(gated=True) as here:
        job = await here.submit()
        await here.processing(job)
        for _ in range(2):  # the second one finds it alone
            with pytest.raises(NotReady):
                await faces(here, photo_with(1, "crash"))
            await until(lambda: here.script.pids[1:] and here.service.not_ready_reason is None)
            await here.processing(job)
        here.script.open_gate()
        record = await here.ended(job)
        assert (record.state, record.deaths, record.tries) == (JobState.COMPLETED, 1, 2)


@scenario
async def test_a_worker_that_runs_a_job_alone_is_asked_nothing(start):
    async with start(gated=True) as here:
        job = await here.submit("crash once at step 1")
        here.script.run_steps(1)
        await until(lambda: here.script.pids[1:] and here.service.not_ready_reason is None)
        await here.processing(job)
        with pytest.raises(NotReady, match="No engine is free"):
            await faces(here)
        here.script.open_gate()
        assert (await here.ended(job)).state is JobState.COMPLETED
        assert await faces(here) == 2


@scenario
async def test_the_idle_device_is_asked(start):
    async with start(gated=True, devices=("a", "b")) as here:
        await here.processing(await here.submit())
        await until(lambda: all(d.ready for d in here.service._runner._dispatcher._devices.values()))
        busy = {line["device"] for line in here.script.lines("admitted")}
        await faces(here)
        assert {line["device"] for line in here.script.lines("asked")} == {"a", "b"} - busy
        here.script.open_gate()


@scenario
async def test_a_server_that_goes_down_takes_no_question_and_answers_those_it_has(start):
    async with start() as here:
        hanging = asyncio.create_task(faces(here, photo_with(1, "stall")))
        await until(lambda: here.script.lines("asked"))
        here.service.begin_drain()
        with pytest.raises(NotReady, match="going down"):
            await faces(here)
        here.service.interrupt()
        with pytest.raises(GoingDown):
            await hanging


@scenario
async def test_a_photo_that_comes_when_the_server_goes_down_is_not_asked_about(start):
    async with start() as here:
        here.photos.gate.clear()
        fetching = asyncio.create_task(faces(here, URL))
        await asyncio.sleep(0)
        here.service.interrupt()
        here.photos.gate.set()
        with pytest.raises(GoingDown):
            await fetching
        assert here.script.lines("asked") == []
