"""Who looks at a job while it is painted: previews as long as somebody does, and the time that is left."""

import asyncio

import pytest

from fakes import preview_of
from jobs.serving import scenario, until
from server.jobs.job import JobRecord, JobState
from server.jobs.live import LiveJob


def preview(here, job_id):
    return here.service._runner.live[job_id].preview


def watches(here):
    return [line["on"] for line in here.script.lines("watch")]


async def step(here, job_id, number):
    here.script.run_steps(1)
    await until(lambda: here.service._runner.live[job_id].step == number)


@scenario
async def test_the_newest_preview_is_there_while_somebody_watches(start):
    async with start(gated=True) as here:
        job_id = await here.submit(num_steps=9)
        await here.processing(job_id)
        with here.service.watching(job_id):
            for number in (1, 2, 3):  # the first was waiting at the gate when the watcher came
                await step(here, job_id, number)
            assert preview(here, job_id) == preview_of(3)
            assert (await here.service.view(job_id, key="")).preview is None, "only for who asks"
            assert (await here.service.view(job_id, key="", previews=True)).preview == preview_of(3)
        assert preview(here, job_id) is None
        here.script.open_gate()
        await here.ended(job_id)


@scenario
async def test_nobody_watching_means_that_no_engine_hears_of_it(start):
    async with start() as here:
        await here.run()
        assert watches(here) == []


@scenario
async def test_the_last_watcher_who_leaves_turns_previews_off(start):
    async with start(gated=True) as here:
        job_id = await here.submit(num_steps=20)
        await here.processing(job_id)
        with here.service.watching(job_id):
            await step(here, job_id, 1)
            with here.service.watching(job_id):
                await step(here, job_id, 2)
            await step(here, job_id, 3)
            assert watches(here) == [True], "one of two has left"
            assert preview(here, job_id) == preview_of(3)
        await step(here, job_id, 4)
        await step(here, job_id, 5)
        assert watches(here) == [True, False]
        assert preview(here, job_id) is None
        here.script.open_gate()
        await here.ended(job_id)


@scenario
async def test_a_job_that_waits_may_be_watched_before_it_has_a_device(start):
    async with start(gated=True) as here:
        await here.processing(await here.submit("first"))
        await here.submit("second")
        await until(lambda: "second" in here.script.prepared)  # the third one's photo cannot be there sooner
        job_id = await here.submit("third", num_steps=3)
        with here.service.watching(job_id):
            here.script.run_steps(4)
            await here.processing(job_id)
            assert here.script.lines("watch")[0]["job"] == job_id
            await step(here, job_id, 1)
            assert preview(here, job_id) == preview_of(1)
            here.script.open_gate()
            await here.ended(job_id)


@scenario
async def test_after_the_death_of_a_worker_the_next_one_hears_of_the_watcher(start):
    async with start(gated=True) as here:
        job_id = await here.submit("crash once at step 3", num_steps=5)
        await here.processing(job_id)
        with here.service.watching(job_id):
            here.script.run_steps(3)
            await until(lambda: len(here.script.pids) == 2)
            assert preview(here, job_id) is None
            await here.processing(job_id)
            await step(here, job_id, 1)
            await step(here, job_id, 2)
            assert preview(here, job_id) == preview_of(2)
            here.script.open_gate()
            await here.ended(job_id)
        assert len({line["pid"] for line in here.script.lines("watch")}) == 2


@scenario
async def test_who_watches_what_has_ended_or_never_was_watches_nothing(start):
    async with start() as here:
        record = await here.run()
        for job_id in (record.id, "nobody"):
            with here.service.watching(job_id):
                await asyncio.sleep(0)
        assert record.state is JobState.COMPLETED
        assert watches(here) == []


@scenario
async def test_a_watcher_who_is_torn_away_is_not_counted_any_more(start):
    async with start(gated=True) as here:
        job_id = await here.submit(num_steps=3)
        await here.processing(job_id)
        with pytest.raises(RuntimeError), here.service.watching(job_id):
            raise RuntimeError
        assert here.service._runner.live[job_id].watchers == 0
        here.script.open_gate()
        await here.ended(job_id)


# the time that is left


def live_job():
    record = JobRecord(id="0" * 32, key="", api="v2", submitted_at=0, deadline_at=1, media_id="1" * 32)
    return LiveJob(record, request=None, output=None)


def test_the_time_that_is_left_is_that_of_the_steps_after_the_first():
    job = live_job()
    lefts = []
    for number, now in enumerate((100.0, 102.0, 106.0, 109.0), start=1):
        job.stepped(number, 4, None, now=now)
        lefts.append(job.seconds_left)
    assert lefts == [None, 4.0, 3.0, 0.0]


def test_a_job_that_starts_again_has_no_time_left_until_its_second_step():
    job = live_job()
    for number, now in ((1, 0.0), (2, 5.0)):
        job.stepped(number, 4, None, now=now)
    job.back_to_queue()
    assert job.seconds_left is None
    job.stepped(1, 4, None, now=50.0)
    assert job.seconds_left is None
    job.stepped(2, 4, None, now=51.0)
    assert job.seconds_left == 2.0
