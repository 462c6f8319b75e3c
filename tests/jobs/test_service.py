"""JobService: every job it takes ends exactly once, and holds nothing afterwards."""

import asyncio
import base64
import functools
import random
import time
import weakref
from contextlib import asynccontextmanager

import pytest

from fakes import PATIENCE_S, ScriptedEngine, flat_picture
from pulid.engine import GenerationRequest
from pulid.errors import Busy, EngineFailed, ImageRejected
from server.jobs.face_stage import FaceStage
from server.jobs.files import OutputOptions
from server.jobs.job import JobCancelled, JobState, JobTimedOut, NotReady
from server.jobs.service import JobService

PHOTO = base64.b64encode(b"a photo").decode()


def scenario(test):
    """Run an async test with a limit, on a fresh event loop."""

    @functools.wraps(test)
    def run():
        asyncio.run(asyncio.wait_for(test(), 2 * PATIENCE_S))

    return run


class Stage:
    """Fetching and decoding that a test can watch and hold back."""

    def __init__(self):
        self.decoded = 0
        self._pictures = []
        self.decode_s = 0.0
        self.may_fetch = asyncio.Event()

    async def fetch(self, url):
        await self.may_fetch.wait()
        if "broken" in url:
            raise ValueError("not what a fetcher may raise")
        return b"a photo"

    def decode(self, data):
        if data != b"a photo":
            raise ImageRejected("not a photo")
        picture = flat_picture(32, 32, (1, 2, 3))
        self.decoded += 1
        time.sleep(self.decode_s)
        self._pictures.append(weakref.ref(picture))
        return picture

    def alive(self):
        """How many decoded pictures somebody still holds."""
        return sum(picture() is not None for picture in self._pictures)


@asynccontextmanager
async def serving(engine, *, max_queued=64, **options):
    stage = Stage()
    service = JobService(
        create_engine=lambda: engine,
        face_stage=FaceStage(fetch=stage.fetch, decode=stage.decode),
        max_queued=max_queued,
        **options,
    )
    await service.start()
    await until(lambda: service.not_ready_reason is None)
    try:
        yield service, stage
    finally:
        if engine._gate is not None:
            engine.open_gate()
        await service.close()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # most conditions are another thread's
            await asyncio.sleep(0.002)


def submit(service, job_id="a", *, photo=PHOTO, num_steps=2, deadline_s=60.0, prompt="p"):
    request = GenerationRequest(prompt=prompt, seed=1, width=32, height=32, num_steps=num_steps)
    return service.submit(job_id, request, photo=photo, output=OutputOptions(), deadline_s=deadline_s)


@scenario
async def test_a_job_ends_completed_with_its_files():
    engine = ScriptedEngine()
    async with serving(engine) as (service, _):
        job = submit(service)
        assert job.state is JobState.QUEUED
        assert await service.wait(job) is job
        assert job.state is JobState.COMPLETED
        assert job.step == 2
        assert job.files[0].content_type == "image/webp"
        assert engine.last_request.id_image.shape == (32, 32, 3)
        assert job.request.id_image is None, "the photo does not stay with the job"
        assert service.unfinished == ()


@scenario
async def test_the_queue_is_bounded_and_the_running_job_does_not_count():
    engine = ScriptedEngine(gated=True)
    async with serving(engine, max_queued=2) as (service, _):
        jobs = [submit(service, "running")]
        await jobs[0].started.wait()
        jobs += [submit(service, "b"), submit(service, "c")]
        with pytest.raises(Busy):
            submit(service, "d")
        engine.open_gate()
        for job in jobs:
            await service.wait(job)
        await service.wait(submit(service, "e"))


@scenario
async def test_a_cancelled_job_is_failed_with_a_reason_and_the_engine_drops_it():
    engine = ScriptedEngine(gated=True)
    async with serving(engine) as (service, _):
        job = submit(service, num_steps=20)
        engine.run_steps(3)
        await until(lambda: engine.steps.get("a") == 3)
        service.cancel(job)
        assert job.state is JobState.FAILED
        with pytest.raises(JobCancelled):
            await service.wait(job)
        engine.run_steps(1)
        await until(lambda: engine.cancelled == ["a"])
        assert engine.steps["a"] <= 4


@scenario
async def test_cancelling_an_ended_job_changes_nothing():
    async with serving(ScriptedEngine()) as (service, _):
        job = await service.wait(submit(service))
        service.cancel(job)
        assert job.state is JobState.COMPLETED
        assert job.files


@scenario
async def test_a_deadline_ends_a_job_that_runs_waits_or_fetches():
    engine = ScriptedEngine(gated=True)
    async with serving(engine) as (service, _):
        jobs = [
            submit(service, "running", deadline_s=0.1),
            submit(service, "waiting", deadline_s=0.1),
            submit(service, "fetching", deadline_s=0.1, photo="https://slow.example/a.png"),
        ]
        for job in jobs:
            with pytest.raises(JobTimedOut, match=r"0\.1 seconds"):
                await service.wait(job)
        assert service.unfinished == ()


@scenario
async def test_a_bad_photo_ends_its_job_before_the_engine_hears_of_it():
    engine = ScriptedEngine()
    async with serving(engine) as (service, _):
        for photo in ("no base64!", base64.b64encode(b"text").decode()):
            with pytest.raises(ImageRejected):
                await service.wait(submit(service, photo=photo))
        assert not engine.admitted


@scenario
async def test_a_fault_of_the_face_stage_ends_its_own_job_only():
    async with serving(ScriptedEngine()) as (service, stage):
        stage.may_fetch.set()
        with pytest.raises(EngineFailed):
            await service.wait(submit(service, photo="https://broken.example/"))
        await service.wait(submit(service))


@scenario
async def test_photos_are_fetched_and_decoded_while_the_engine_is_busy():
    engine = ScriptedEngine(gated=True)
    async with serving(engine) as (service, stage):
        running = submit(service, "running")
        await running.started.wait()
        stage.may_fetch.set()
        waiting = submit(service, "waiting", photo="https://photos.example/a.png")
        await until(lambda: stage.decoded == 2)
        assert engine.steps["running"] == 0
        assert not waiting.started.is_set()
        engine.open_gate()
        await service.wait(waiting)


@scenario
async def test_few_photos_wait_as_pixels_however_long_the_queue_is():
    engine = ScriptedEngine(gated=True)
    async with serving(engine) as (service, stage):
        jobs = [submit(service, str(number)) for number in range(8)]
        await until(lambda: stage.decoded >= 8)  # each was looked at
        await until(lambda: stage.alive() <= 3)  # one is being painted, two come next
        engine.open_gate()
        for job in jobs:
            await service.wait(job)
        assert len(engine.admitted) == 8


@scenario
async def test_jobs_cancelled_at_any_moment_give_their_places_back():
    chance = random.Random(0)
    async with serving(ScriptedEngine()) as (service, stage):
        stage.decode_s = 0.001
        for _ in range(60):
            jobs = [submit(service, str(number), num_steps=1) for number in range(6)]
            for job in chance.sample(jobs, 4):
                await asyncio.sleep(chance.uniform(0, 0.003))
                service.cancel(job)
            await asyncio.gather(*(job.ended.wait() for job in jobs))
        await service.wait(submit(service, "last"))


@scenario
async def test_closing_fails_what_has_not_ended_and_refuses_more():
    engine = ScriptedEngine(gated=True)
    async with serving(engine) as (service, _):
        jobs = [submit(service, "a"), submit(service, "b")]
        await jobs[0].started.wait()
        engine.open_gate()
        await service.close()
        for job in jobs:
            assert job.state in (JobState.FAILED, JobState.COMPLETED)
        assert engine.closed
        with pytest.raises(NotReady):
            submit(service, "c")


@scenario
async def test_a_lost_engine_fails_every_job_and_tells_the_owner():
    class DyingEngine(ScriptedEngine):
        def step(self):
            super().step()
            raise SystemExit

    engine, lost = DyingEngine(gated=True), []
    async with serving(engine, on_lost=lost.append) as (service, _):
        jobs = [submit(service, "a"), submit(service, "b")]
        engine.run_steps(1)
        for job in jobs:
            with pytest.raises(EngineFailed):
                await service.wait(job)
        assert len(lost) == 1
        assert service.not_ready_reason == str(lost[0])
