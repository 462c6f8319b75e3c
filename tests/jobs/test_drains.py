"""The end of a service: callers who wait hear of it, accepted jobs are kept, no worker is started."""

import asyncio
import os
import signal
import threading

import pytest

import jobs.serving
from jobs.serving import PATIENCE_S, bodies_of, locked_database, scenario, until
from server.jobs.job import JobState, NotReady


def kill_worker(here):
    os.kill(here.script.pids[-1], signal.SIGKILL)


async def drained(here):
    await asyncio.wait_for(here.service.drained(), PATIENCE_S)


@scenario
async def test_a_call_that_is_still_open_at_the_end_hears_so(start):
    async with start(gated=True) as here:
        call = await here.submit(api="v1")
        await here.processing(call)
        job = await here.submit()
        here.service.begin_drain()
        assert await here.state(call) is JobState.PROCESSING
        here.service.interrupt()
        assert (await here.ended(call)).error_code == "interrupted"
        assert await here.state(job) is JobState.QUEUED


class Reader:
    """A parser that takes its time."""

    def __init__(self):
        self.is_reading, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, body):
        self.is_reading.set()
        self.may_go_on.wait(PATIENCE_S)
        return jobs.serving.parse(body)


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_submit_that_was_being_read_when_the_drain_began_is_refused(tmp_path, api):
    reader = Reader()

    @scenario
    async def test(start):
        async with start(parse=reader) as here:
            submitting = asyncio.create_task(here.submit(api=api))
            await until(reader.is_reading.is_set)
            here.service.begin_drain()
            reader.may_go_on.set()
            with pytest.raises(NotReady, match="going down"):
                await submitting
            assert here.service.unfinished_of("") == 0

    test(tmp_path)


@scenario
async def test_a_call_that_was_being_written_and_waited_when_the_drain_began_is_refused(start):
    async with start(gated=True) as here:
        running = await here.submit()
        await here.processing(running)
        with locked_database(here):
            submitting = asyncio.create_task(here.submit(api="v1", key="late"))
            await until(lambda: here.service.unfinished_of("late") == 1)
            here.service.begin_drain()
        record = await here.ended(await submitting)
        assert (record.state, record.error_code) == (JobState.FAILED, "not_ready")
        await asyncio.sleep(0.3)  # as long as a photo takes
        assert {file.name.partition(".")[0] for file in bodies_of(here)} == {running}
        assert here.service.unfinished_of("late") == 0


@scenario
async def test_a_call_that_was_being_written_and_painted_when_the_drain_began_is_finished(start):
    async with start(gated=True) as here:
        with locked_database(here):
            submitting = asyncio.create_task(here.submit(api="v1"))
            await until(lambda: here.script.lines("admitted"))
            here.service.begin_drain()
        here.script.open_gate()
        assert (await here.ended(await submitting)).state is JobState.COMPLETED
        await drained(here)


@scenario
async def test_a_worker_that_dies_in_a_drain_is_nobodys_fault_and_not_replaced(start):
    async with start(gated=True) as here:
        job_id = await here.submit()
        await here.processing(job_id)
        here.service.begin_drain()
        kill_worker(here)
        await drained(here)
        record = (await here.service.view(job_id, key="")).record
        assert (record.state, record.deaths) == (JobState.QUEUED, 0)
        await asyncio.sleep(0.3)  # a worker is replaced after a tenth of a second
        assert len(here.script.pids) == 1
    async with start() as again:
        assert (await again.ended(job_id)).state is JobState.COMPLETED


@scenario
async def test_a_call_whose_worker_dies_in_a_drain_hears_so(start):
    async with start(gated=True) as here:
        call = await here.submit(api="v1")
        await here.processing(call)
        here.service.begin_drain()
        kill_worker(here)
        assert (await here.ended(call)).error_code == "not_ready"
        await drained(here)


@scenario
async def test_open_calls_hear_that_the_engine_is_lost_and_may_come_again(start):
    async with start() as here:
        here.photos.gate.clear()
        call = await here.submit(api="v1", photo="https://slow.example/photo.png")
        for life in range(1, 5):
            await until(lambda life=life: len(here.script.pids) == life)
            kill_worker(here)
        record = await here.ended(call)
        assert (record.error_code, len(here.lost)) == ("not_ready", 1)
