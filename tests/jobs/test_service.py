"""From submit to end, over a real database, real files and real worker processes."""

import asyncio
import io
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace

import anyio
import numpy as np
import pytest
from PIL import Image

from fakes import paint
from jobs.serving import (
    PATIENCE_S,
    PHOTO,
    PICTURE,
    bodies_of,
    data_of,
    parse,
    picture_path,
    scenario,
    serving,
    stored_states,
    until,
)
from pulid.errors import BadRequest, Busy
from server.jobs.job import IdempotencyConflict, JobNotFound, JobState, NotReady
from server.jobs.service import PARSES_AT_ONCE
from server.jobs.storage import TRY_AGAIN_S, JobStorage
from server.security.image_decode import decode_image


def expected_bytes(here, prompt="p", **fields):
    """What the engine paints for this body, alone."""
    parsed = parse(here.body(prompt, **fields))
    photo = decode_image(PICTURE)
    return list(paint(replace(parsed.request, id_images=(photo,))).images)


async def pictures(here, record):
    files = await here.service.read_outputs(record)
    return [np.array(Image.open(io.BytesIO(data))) for data in files]


def same(got, wanted):
    return len(got) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


@scenario
async def test_a_job_ends_completed_with_its_own_pictures(start):
    async with start() as here:
        record = await here.run("a knight", seed=7, num_outputs=2)
        assert record.state is JobState.COMPLETED
        assert [file.name for file in record.files] == ["0.png", "1.png"]
        assert same(await pictures(here, record), expected_bytes(here, "a knight", seed=7, num_outputs=2))
        assert record.inference_s > 0
        assert record.tries == 1
        data, file = await here.service.media(record.media_id, "0.png")
        assert len(data) == file.size


@scenario
async def test_the_end_of_a_job_of_either_api_is_in_the_store(start):
    async with start() as here:
        for api in ("v1", "v2"):
            record = await here.run("a knight", api=api)
            await until(lambda job_id=record.id: job_id not in here.service._runner.live)
            stored = (await here.service.view(record.id, key="")).record
            assert stored == record
            assert (await here.service.media(stored.media_id, "0.png"))[0]


@scenario
async def test_body_and_photo_are_on_disk_while_the_job_lives_and_gone_after(start):
    async with start(gated=True) as here:
        job_id = await here.submit()
        await here.processing(job_id)
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in bodies_of(here))
        assert len(bodies_of(here)) == 2
        here.script.open_gate()
        await here.ended(job_id)
        await until(lambda: not bodies_of(here))


@scenario
async def test_a_wrong_body_is_refused_in_v1_and_a_failed_job_in_v2(start):
    async with start() as here:
        with pytest.raises(BadRequest, match="no good"):
            await here.submit(refuse="no good", api="v1")
        record = await here.run(refuse="no good")
        assert (record.state, record.error, record.tries) == (JobState.FAILED, "no good", 0)
        with pytest.raises(BadRequest, match="not JSON"):
            await here.service.submit(b"nonsense", key="", api="v2", deadline_s=1)


@scenario
async def test_few_bodies_are_parsed_at_a_time(start):
    now, most, lock = 0, 0, threading.Lock()

    def counted(body):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return parse(body)

    async with start(parse=counted) as here:
        await asyncio.gather(*(here.submit() for _ in range(4 * PARSES_AT_ONCE)))
        assert 1 < most <= PARSES_AT_ONCE


@scenario
async def test_strict_v2_refuses_a_wrong_body(start):
    async with start(v2_strict=True) as here:
        with pytest.raises(BadRequest, match="no good"):
            await here.submit(refuse="no good")


@scenario
async def test_a_bad_photo_and_a_faceless_one_fail_with_their_reason(start):
    async with start() as here:
        here.photo = "aGVsbG8="
        assert (await here.run()).error_code == "image_rejected"
        here.photo = PHOTO
        record = await here.run("no face")
        assert (record.state, record.error_code, record.tries) == (JobState.FAILED, "no_face", 0)


@scenario
async def test_the_queue_is_bounded_and_a_refusal_leaves_nothing(start):
    async with start(gated=True, max_queued=2) as here:
        running = await here.submit()
        await here.processing(running)
        ahead = await here.submit()
        await until(lambda: len(here.script.prepared) == 2)
        waiting = [await here.submit() for _ in range(2)]
        with pytest.raises(Busy):
            await here.submit()
        assert len([path for path in bodies_of(here) if path.suffix == ".json"]) == 4
        here.script.open_gate()
        records = [await here.ended(job_id) for job_id in (running, ahead, *waiting)]
        assert {record.state for record in records} == {JobState.COMPLETED}


@scenario
async def test_the_next_job_is_prepared_beside_the_running_one(start):
    async with start(gated=True) as here:
        first = await here.submit("job 0")
        await here.processing(first)
        second = await here.submit("job 1")
        await until(lambda: here.script.prepared == ["job 0", "job 1"])
        third = await here.submit("job 2")  # earlier, its photo could be there before that of the second
        view = await here.service.view(second, key="")
        assert (view.record.state, view.queue_position) == (JobState.QUEUED, 0)
        assert (await here.service.view(third, key="")).queue_position == 1
        here.script.open_gate()
        await here.ended(third)


@scenario
async def test_a_job_that_is_on_a_device_but_has_not_begun_has_nobody_before_it(start):
    async with start() as here:
        job_id = await here.submit("slow 0.5 s while preparing")
        await until(lambda: here.script.prepared)
        view = await here.service.view(job_id, key="")
        assert (view.record.state, view.queue_position) == (JobState.QUEUED, 0)
        await here.ended(job_id)


@scenario
async def test_jobs_belong_to_their_key(start):
    async with start() as here:
        job_id = await here.submit(key="alice")
        await here.ended(job_id)
        assert (await here.service.view(job_id, key="alice")).record.id == job_id
        for ask in (here.service.view, here.service.remove):
            with pytest.raises(JobNotFound):
                await ask(job_id, key="bob")
        with pytest.raises(JobNotFound):
            await here.service.view("0" * 32, key="alice")


@scenario
async def test_unfinished_jobs_are_counted_by_key(start):
    async with start(gated=True) as here:
        jobs = [await here.submit(key="alice") for _ in range(3)]
        assert (here.service.unfinished_of("alice"), here.service.unfinished_of("bob")) == (3, 0)
        here.script.open_gate()
        for job_id in jobs:
            await here.ended(job_id)
        assert here.service.unfinished_of("alice") == 0


@scenario
async def test_cancelling_a_running_job_stops_it_within_one_step(start):
    async with start(gated=True) as here:
        job_id = await here.submit(num_steps=20)
        await here.processing(job_id)
        here.script.run_steps(3)
        await until(lambda: here.script.steps.get(job_id) == 3)
        record = (await here.service.remove(job_id, key="")).record
        assert (record.state, record.error_code) == (JobState.FAILED, "cancelled")
        after = await here.submit("next", num_steps=1)
        await until(lambda: "next" in here.script.prepared)  # the worker has read the cancel before it
        here.script.run_steps(1)
        await until(lambda: job_id in here.script.cancelled)
        assert here.script.steps[job_id] <= 4
        here.script.open_gate()
        assert (await here.ended(after)).state is JobState.COMPLETED


@scenario
async def test_deleting_an_ended_job_deletes_its_pictures(start):
    async with start() as here:
        record = await here.run()
        path = picture_path(here, record)
        await here.service.remove(record.id, key="")
        assert not path.exists()
        with pytest.raises(JobNotFound):
            await here.service.view(record.id, key="")
        with pytest.raises(JobNotFound):
            await here.service.media(record.media_id, "0.png")


@scenario
async def test_a_deadline_ends_a_waiting_and_a_running_job(start):
    async with start(gated=True) as here:
        running = await here.submit(deadline_s=0.6)
        await here.processing(running)
        waiting = await here.submit(deadline_s=0.1)
        for job_id in (waiting, running):
            record = await here.ended(job_id)
            assert (record.state, record.error_code) == (JobState.FAILED, "timed_out")
            assert "not ready within" in record.error


@scenario
async def test_an_idempotency_key_gives_the_same_job_again(start):
    async with start(gated=True) as here:
        first = await here.submit(idempotency_key="k")
        assert await here.submit(idempotency_key="k") == first
        assert await here.submit(idempotency_key="k", key="bob") != first
        with pytest.raises(IdempotencyConflict):
            await here.submit("another body", idempotency_key="k")
        assert here.service.unfinished_of("") == 1
        here.script.open_gate()
        await here.ended(first)
        assert await here.submit(idempotency_key="k") == first


@scenario
async def test_events_tell_every_step_and_end_with_the_end(start):
    async with start(gated=True) as here:
        job_id = await here.submit(num_steps=3)
        seen = []

        async def listen():
            async for view in here.service.events(job_id, key=""):
                seen.append((view.record.state, view.step))

        listener = asyncio.create_task(listen())
        await here.processing(job_id)
        for step in (1, 2):
            here.script.run_steps(1)
            await until(lambda step=step: (JobState.PROCESSING, step) in seen)
        here.script.open_gate()
        await asyncio.wait_for(listener, PATIENCE_S)
        assert seen[0][0] is JobState.QUEUED
        assert seen[-1][0] is JobState.COMPLETED
        assert [step for _, step in seen] == sorted(step for _, step in seen)


@scenario
async def test_a_polite_key_is_not_delayed_by_another_keys_flood(start):
    async with start(gated=True) as here:
        flood = [await here.submit("flood 0", key="flood", num_steps=1)]
        await here.processing(flood[0], "flood")
        flood += [await here.submit(f"flood {i}", key="flood", num_steps=1) for i in range(1, 20)]
        await until(lambda: len(here.script.prepared) == 2)
        polite = await here.submit("polite", key="polite", num_steps=1)
        await until(lambda: any(path.name.startswith(f"{polite}.photo") for path in bodies_of(here)))
        await asyncio.sleep(0.3)  # it is known to be there
        here.script.run_steps(3)
        assert (await here.ended(polite)).state is JobState.COMPLETED
        here.script.open_gate()
        for job_id in flood:
            assert (await here.ended(job_id)).state is JobState.COMPLETED


# deaths


@scenario
async def test_a_worker_killed_in_a_step_costs_its_job_nothing_but_time(start):
    async with start() as here:
        prompt = "crash once at step 2"
        record = await here.run(prompt, num_steps=3)
        assert (record.state, record.tries, record.deaths) == (JobState.COMPLETED, 2, 1)
        assert same(await pictures(here, record), expected_bytes(here, prompt, num_steps=3))
        assert len(here.script.pids) == 2


@scenario
async def test_a_poison_job_fails_after_its_second_death_and_its_neighbours_complete(start):
    async with start(gated=True) as here:
        neighbour = await here.submit("good", num_steps=2)
        await here.processing(neighbour)
        poison = await here.submit("crash while preparing")
        after = await here.submit("after")
        here.script.open_gate()
        record = await here.ended(poison)
        assert (record.state, record.deaths) == (JobState.FAILED, 2)
        assert "died twice" in record.error
        for job_id in (neighbour, after):
            assert (await here.ended(job_id)).state is JobState.COMPLETED
        assert here.lost == []


@scenario
async def test_a_stopped_worker_is_killed_and_its_job_done_by_the_next(start):
    async with start(stall_floor_s=0.5) as here:
        record = await here.run("stall once at step 2", num_steps=3)
        assert (record.state, record.deaths) == (JobState.COMPLETED, 1)


@scenario
async def test_out_of_memory_is_503_in_v1_and_tried_again_in_v2(start):
    async with start() as here:
        record = await here.run("oom once at step 1")
        assert (record.state, record.tries) == (JobState.COMPLETED, 2)
        record = await here.run("oom once at step 2", api="v1")
        assert (record.state, record.error_code) == (JobState.FAILED, "out_of_memory")


@scenario
async def test_an_unexplained_fault_is_tried_three_times_in_v2(start):
    async with start() as here:
        record = await here.run("raise at step 1")
        assert (record.state, record.error_code, record.tries) == (JobState.FAILED, "engine_failed", 3)
        assert (await here.run("fine")).state is JobState.COMPLETED


@scenario
async def test_a_worker_killed_from_outside_while_idle_is_replaced(start):
    async with start() as here:
        os.kill(here.script.pids[0], signal.SIGKILL)
        await until(lambda: here.service.not_ready_reason is not None)
        assert "started again" in here.service.not_ready_reason
        assert (await here.run()).state is JobState.COMPLETED


@scenario
async def test_two_devices_share_the_queue(start):
    async with start(devices=("a", "b"), gated=True) as here:
        devices = here.service._runner._dispatcher._devices
        await until(lambda: all(device.ready for device in devices.values()))
        jobs = [await here.submit(f"job {i}") for i in range(2)]
        for job_id in jobs:
            await here.processing(job_id)
        jobs += [await here.submit(f"job {i}") for i in range(2, 4)]
        here.script.open_gate()
        assert {(await here.ended(job_id)).state for job_id in jobs} == {JobState.COMPLETED}


# the end of the server


@scenario
async def test_after_a_stop_v2_jobs_go_on_and_v1_jobs_are_failed(start):
    async with start(gated=True) as here:
        running = await here.submit("running", seed=5)
        await here.processing(running)
        waiting = await here.submit("waiting")
        sync = await here.submit("sync", api="v1")
    async with start() as again:
        for job_id in (running, waiting):
            record = await again.ended(job_id)
            assert record.state is JobState.COMPLETED
        record = (await again.service.view(running, key="")).record
        assert same(await pictures(again, record), expected_bytes(again, "running", seed=5))
        assert record.tries == 2
        assert (await again.service.view(sync, key="")).record.state is JobState.FAILED


@scenario
async def test_a_random_seed_survives_a_restart(start):
    """The seed was drawn when the job was accepted; the body on disk does not have it."""
    async with start(gated=True) as here:
        job_id = await here.submit("p", seed=123)
        await until(lambda: stored_states(here) == ["PROCESSING"])  # nothing more is written by itself
        storage = here.service._storage
        record = await storage.get(job_id)
        await storage.save(replace(record, seed=456))
    async with start() as again:
        record = await again.ended(job_id)
        assert same(await pictures(again, record), expected_bytes(again, "p", seed=456))


@scenario
async def test_tries_are_counted_over_restarts_and_used_up_after_three(start):
    job_id = None
    for _ in range(3):
        async with start(gated=True) as here:
            job_id = job_id or await here.submit()
            await here.processing(job_id)
            await asyncio.sleep(0.1)  # the beginning is written behind the job's back
    async with start() as here:
        record = await here.ended(job_id)
        assert (record.state, record.error_code) == (JobState.FAILED, "interrupted")


@scenario
async def test_a_drain_finishes_what_runs_refuses_what_comes_and_keeps_what_waits(start):
    async with start(gated=True) as here:
        running = await here.submit("running")
        await here.processing(running)
        waiting = await here.submit("waiting")
        sync = await here.submit("sync", api="v1")
        here.service.begin_drain()
        assert here.service.not_ready_reason is not None
        with pytest.raises(NotReady):
            await here.submit()
        assert (await here.ended(sync)).error_code == "not_ready"
        here.script.open_gate()
        await asyncio.wait_for(here.service.drained(), PATIENCE_S)
        assert (await here.ended(running)).state is JobState.COMPLETED
        assert await here.state(waiting) is JobState.QUEUED
    async with start() as again:
        assert (await again.ended(waiting)).state is JobState.COMPLETED


@scenario
async def test_files_of_unknown_jobs_are_cleared_at_start(start):
    async with start() as here:
        record = await here.run()
        data = here.service._storage._data_dir
        here.service._storage._bodies.write("a" * 32, b"{}")
        here.service._storage._bodies.write_photo("a" * 32, 3, PICTURE)
        stray_media = data.media / ("b" * 32)
    stray_media.mkdir()
    (stray_media / "0.png").write_bytes(PICTURE)
    async with start() as again:
        assert list(data_of(again).bodies.iterdir()) == []
        assert not stray_media.exists()
        assert (await again.service.media(record.media_id, "0.png"))[0]


@scenario
async def test_nothing_is_accepted_on_a_full_disk_and_reads_go_on(start):
    async with start() as here:
        record = await here.run()
        here.service._storage._min_free_bytes = 2**62
        assert "disk" in here.service.not_ready_reason
        with pytest.raises(NotReady, match="disk"):
            await here.submit()
        assert (await here.service.view(record.id, key="")).record.state is JobState.COMPLETED
        here.service._storage._min_free_bytes = 0
        assert (await here.run()).state is JobState.COMPLETED


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of another process")
@scenario
async def test_pictures_that_find_no_room_are_painted_again_once_there_is_some(start):
    """However long that takes: a retry while the disk is still full would only use up a try."""
    async with start(gated=True) as here:
        job_id = await here.submit(width=1536, height=1536, num_steps=1)
        await here.processing(job_id)
        worker = int(here.service.engine_info.details["pid"])
        _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1000, hard))
        here.service._storage._min_free_bytes = 2**62
        here.script.open_gate()
        await until(lambda: here.service._runner.live[job_id].record.state is JobState.QUEUED)
        await asyncio.sleep(TRY_AGAIN_S * 1.5)
        assert here.service._runner.live[job_id].record.tries == 1
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
        here.service._storage._min_free_bytes = 0
        record = await here.ended(job_id)
        assert (record.state, record.tries) == (JobState.COMPLETED, 2)


@scenario
async def test_records_go_after_their_time_and_pictures_after_theirs(start):
    async with start(result_ttl_s=0.05, media_ttl_s=0.4) as here:
        record = await here.run()
        path = picture_path(here, record)
        await asyncio.sleep(0.1)
        await here.service._storage.sweep(0.05)
        with pytest.raises(JobNotFound):
            await here.service.view(record.id, key="")
        assert path.exists()
        await asyncio.sleep(0.4)
        await here.service._storage.sweep(0.05)
        assert not path.exists()


@scenario
async def test_a_second_server_on_the_same_folder_is_refused(start):
    async with start() as here:
        other = JobStorage(here.service._storage._data_dir.root)
        with pytest.raises(Exception, match="Another server"):
            await other.open()


def test_nothing_blocks_the_loop_while_jobs_run(tmp_path):
    """Between two ticks of 5 ms never more than 100 ms pass, although ten jobs with photos run."""

    async def run():
        async with serving(tmp_path, photo=PHOTO, picture=PICTURE) as here:
            loop, worst = asyncio.get_running_loop(), 0.0

            async def tick():
                nonlocal worst
                while True:
                    before = loop.time()
                    await asyncio.sleep(0.005)
                    worst = max(worst, loop.time() - before)

            ticking = asyncio.create_task(tick())
            await asyncio.gather(*(here.run(f"job {i}") for i in range(10)))
            ticking.cancel()
            assert worst < 0.1

    anyio.run(run)
