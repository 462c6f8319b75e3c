"""Several devices, each with a real worker process: one queue over them, and none brings down the others."""

import base64
import os
import signal

import pytest
from PIL import Image

import server.jobs.worker_pool as pool_module
from jobs.serving import PHOTO, png, scenario, until
from pulid.errors import DeviceUnavailable, EngineFailed
from server.jobs.job import JobState

OTHER_PHOTO = base64.b64encode(png(Image.new("RGB", (64, 48), (40, 120, 200)))).decode()


def all_ready(here):
    return all(here.service.workers.values())


def painted_on(here, job_id):
    """The devices whose engines took the job."""
    return [line["device"] for line in here.script.lines("admitted") if line["job"] == job_id]


def pid_on(here, device):
    return [line["pid"] for line in here.script.lines("loading") if line["device"] == device][-1]


async def kill_on(here, device):
    """The end of a worker, noticed."""
    pid = pid_on(here, device)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not here.service.workers[device])


@pytest.fixture(autouse=True)
def workers_come_back_at_once(monkeypatch):
    monkeypatch.setattr(pool_module, "RESTART_DELAYS_S", (0.01, 0.01, 0.01))


def series(here, name, device):
    return here.registry.get_sample_value(name, {"device": device})


# one queue


@scenario
async def test_a_device_that_is_done_paints_what_another_has_prepared(start):
    async with start(devices=("a", "b")) as here:
        await until(lambda: all_ready(here))
        long = await here.submit("slow 0.5 s per step", num_steps=40)
        await here.processing(long)
        short = await here.submit("slow 0.2 s per step", num_steps=5)
        await here.processing(short)
        moved = await here.submit("moved")
        await until(lambda: "moved" in here.script.prepared)  # beside the long one, which began first
        record = await here.ended(moved)
        assert (record.state, record.tries) == (JobState.COMPLETED, 1)
        assert await here.state(long) is JobState.PROCESSING
        assert here.script.prepared.count("moved") == 2
        assert painted_on(here, moved) == painted_on(here, short)
        assert painted_on(here, long) != painted_on(here, short)
        assert len((await here.ended(moved)).files) == 1
        await here.service.remove(long, key="")


@pytest.mark.release
@scenario
async def test_after_a_take_over_a_death_of_either_device_loses_nothing(start):
    async with start(devices=("a", "b")) as here:
        await until(lambda: all_ready(here))
        long = await here.submit("slow 0.1 s per step, crash once at step 9", num_steps=10)
        await here.processing(long)
        short = await here.submit("slow 0.1 s per step", num_steps=3)
        await here.processing(short)
        moved = await here.submit("moved, crash once at step 2")
        records = [await here.ended(job_id) for job_id in (long, short, moved)]
        assert [record.state for record in records] == [JobState.COMPLETED] * 3
        assert [records[0].deaths, records[2].deaths] == [1, 1]
        assert here.lost == []


@scenario
async def test_jobs_of_a_shape_stay_with_the_device_that_has_painted_it(start):
    async with start(devices=("a", "b")) as here:
        await until(lambda: all_ready(here))
        first = {}
        for width, photo in ((256, PHOTO), (320, OTHER_PHOTO)):
            here.photo = photo
            record = await here.run(width=width)
            [first[width]] = painted_on(here, record.id)
        assert set(first.values()) == {"a", "b"}
        for width in (320, 320, 256, 320, 256, 256):
            record = await here.run(width=width)
            assert painted_on(here, record.id) == [first[width]]


# one that fails


@scenario
async def test_a_device_whose_engine_cannot_be_loaded_leaves_the_others_serving(start):
    error = DeviceUnavailable("no such card")
    async with start(devices=("a", "b"), load_error=error, fails_on=("b",)) as here:
        await until(lambda: "b" in here.service.out_of_service)
        assert here.service.not_ready_reason is None
        records = [await here.run(f"job {number} skips {number} steps") for number in range(3)]
        assert {record.state for record in records} == {JobState.COMPLETED}
        assert here.lost == []
        assert str(here.service.out_of_service["b"]) == "no such card"
        assert series(here, "flux_pulid_device_out_of_service", "a") == 0
        assert series(here, "flux_pulid_device_out_of_service", "b") == 1
        assert series(here, "flux_pulid_device_jobs_total", "a") == 3
        assert series(here, "flux_pulid_device_skipped_steps_total", "a") == 3
        assert series(here, "flux_pulid_device_step_seconds_count", "a") == 6


@scenario
async def test_a_server_none_of_whose_engines_can_be_loaded_ends(start):
    error = DeviceUnavailable("no such card")
    async with start(devices=("a", "b"), load_error=error, ready=False) as here:
        await until(lambda: here.lost)
        assert [str(lost) for lost in here.lost] == ["no such card"]
        assert here.service.not_ready_reason == "no such card"


@pytest.fixture
def given_up_after_two_deaths(monkeypatch):
    monkeypatch.setattr(pool_module, "DEATHS_TO_GIVE_UP", 2)


@pytest.mark.usefixtures("given_up_after_two_deaths")
@scenario
async def test_a_device_that_keeps_dying_is_given_up_and_the_server_ends_with_the_last_one(start):
    async with start(devices=("a", "b")) as here:
        await until(lambda: all_ready(here))
        await kill_on(here, "b")
        await until(lambda: here.service.workers["b"])
        await kill_on(here, "b")
        assert set(here.service.out_of_service) == {"b"}
        assert series(here, "flux_pulid_device_restarts_total", "b") == 1
        assert series(here, "flux_pulid_device_restarts_total", "a") == 0
        assert (await here.run()).state is JobState.COMPLETED
        await kill_on(here, "a")
        waiting = await here.submit()  # a worker that is started again is waited for
        assert (await here.ended(waiting)).state is JobState.COMPLETED
        assert here.lost == []
        await kill_on(here, "a")
        [error] = here.lost
        assert isinstance(error, EngineFailed)
        assert "The worker of a has died 2 times within 10 minutes" in str(error)


@scenario
async def test_a_poison_job_costs_a_server_with_several_devices_none_of_them(start):
    async with start(devices=("a", "b")) as here:
        await until(lambda: all_ready(here))
        poison = [await here.submit("crash at step 1") for _ in range(2)]
        good = [await here.submit("good") for _ in range(3)]
        assert {(await here.ended(job_id)).deaths for job_id in poison} == {2}
        assert {(await here.ended(job_id)).state for job_id in good} == {JobState.COMPLETED}
        assert here.lost == []
