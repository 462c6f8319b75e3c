"""Two job services over one database and one folder: a job may be asked for, and end, at either."""

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest

import jobs.serving
from jobs.serving import PATIENCE_S, PHOTO, PICTURE, picture_path, serving, until
from live_server import HERE
from server.jobs.job import JobNotFound, JobState, StoreFailed
from server.jobs.places import SharedPlaces

LEASE_S = 1.5
COMPLETED, FAILED, QUEUED = JobState.COMPLETED, JobState.FAILED, JobState.QUEUED


@pytest.fixture
def service(monkeypatch, database, tmp_path):
    """`service("one")` is a server, `service("two")` another."""

    (tmp_path / "shared").mkdir()

    def shared_places(folder, devices):
        return SharedPlaces(
            database_url=database,
            media_url=f"file://{tmp_path}/shared",
            devices=len(devices),
            lease_s=LEASE_S,
        )

    monkeypatch.setattr(jobs.serving, "shared_places", shared_places)
    monkeypatch.setattr("server.jobs.leases.LOOK_EVERY_S", 0.3)

    @asynccontextmanager
    async def start(name, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        async with serving(folder, photo=PHOTO, picture=PICTURE, **options) as here:
            yield here

    return start


def run(test):
    asyncio.run(asyncio.wait_for(test, 60))


@contextmanager
def frozen(here):
    """It says nothing more to the others, and hears nothing; its worker works on."""
    leases = here.service._runner._leases
    hear, leases.hear = leases.hear, lambda job_id: None
    thawed = asyncio.Event()
    storage = here.service._storage
    beat, claim = storage.beat, storage.claim

    async def no_beat():
        await thawed.wait()
        return await beat()

    async def no_claim(at_most):
        await thawed.wait()
        return await claim(at_most)

    storage.beat, storage.claim = no_beat, no_claim
    yield
    storage.beat, storage.claim = beat, claim
    leases.hear = hear
    thawed.set()


def test_a_job_is_seen_waited_for_and_its_picture_read_at_the_other_server(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit()
            await one.processing(job_id)
            await two.processing(job_id)
            seen = []

            async def listen():
                async for view in two.service.events(job_id, key=""):
                    seen.append(view.record.state)

            listening = asyncio.create_task(listen())
            waiting = asyncio.create_task(two.ended(job_id))
            await asyncio.sleep(0.1)
            one.script.open_gate()
            record = await waiting
            assert record.state is COMPLETED
            assert (await two.service.media(record.media_id, "0.png"))[0] == (
                await one.service.media(record.media_id, "0.png")
            )[0]
            await asyncio.wait_for(listening, PATIENCE_S)
            assert list(dict.fromkeys(seen)) == [JobState.PROCESSING, COMPLETED]

    run(test())


@pytest.mark.release
def test_its_end_is_heard_sooner_than_anybody_looks(service, monkeypatch):
    monkeypatch.setattr("server.jobs.service.LOOK_EVERY_S", 30.0)

    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit()
            await one.processing(job_id)
            waiting = asyncio.create_task(two.ended(job_id))
            await asyncio.sleep(0.3)
            one.script.open_gate()
            await one.ended(job_id)
            started = time.monotonic()
            assert (await waiting).state is COMPLETED
            assert time.monotonic() - started < 2

    run(test())


def test_an_idle_server_takes_what_waits_at_a_busy_one(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_ids = [await one.submit(f"job {number}") for number in range(4)]
            records = [await two.ended(job_id) for job_id in job_ids[2:]]
            assert {record.state for record in records} == {COMPLETED}
            assert {line["prompt"] for line in two.script.lines("preparing")} == {"job 2", "job 3"}
            assert set(one.service._runner.live) == set(job_ids[:2])
            one.script.open_gate()
            assert {(await one.ended(job_id)).state for job_id in job_ids} == {COMPLETED}

    run(test())


@pytest.mark.parametrize("at", [pytest.param("one", marks=pytest.mark.release), "two"])
def test_a_cancel_at_either_server_ends_the_job_at_its_own(service, at):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit(num_steps=20)
            await two.processing(job_id)
            view = await {"one": one, "two": two}[at].service.remove(job_id, key="")
            assert (view.record.state, view.record.error_code) == (FAILED, "cancelled")
            await until(lambda: job_id not in one.service._runner.live)
            one.script.open_gate()
            assert (await one.run("next")).state is COMPLETED
            assert one.service.unfinished_of("") == 0
            await two.service.remove(job_id, key="")
            with pytest.raises(JobNotFound):
                await one.service.view(job_id, key="")

    run(test())


def test_a_job_of_a_server_that_was_killed_is_taken_up_by_the_other(service, database, tmp_path):
    async def test():
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        doomed = await asyncio.create_subprocess_exec(
            *(sys.executable, HERE / "cluster" / "doomed_service.py", database, tmp_path, str(LEASE_S)),
            env=os.environ | {"PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE,
        )
        async with service("two") as two:
            while len(line := await doomed.stdout.readline()) != 33:  # beside what is logged
                assert line
            job_id = line.decode().strip()
            assert await two.state(job_id) is JobState.PROCESSING
            doomed.kill()
            killed = time.monotonic()
            record = await two.ended(job_id)
            assert (record.state, record.tries) == (COMPLETED, 2)
            assert time.monotonic() - killed < LEASE_S + PATIENCE_S / 4
            assert picture_path(two, record).exists()
            await doomed.wait()

    run(test())


def test_steps_of_a_job_are_told_at_the_other_server(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit(num_steps=9)
            await one.processing(job_id)
            seen = []

            async def listen():
                async for view in two.service.events(job_id, key=""):
                    seen.append((view.record.state, view.step, view.seconds_left))

            listening = asyncio.create_task(listen())
            for step in (1, 2):
                one.script.run_steps(1)
                await until(lambda step=step: one.service._runner.live[job_id].step == step)
                async with asyncio.timeout(2):
                    while (await two.service.view(job_id, key="")).step != step:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            one.script.open_gate()
            await asyncio.wait_for(listening, PATIENCE_S)
            running = [(step, left) for state, step, left in seen if state is JobState.PROCESSING]
            assert [step for step, _ in running][:3] == [0, 1, 2]
            assert running[2][1] > 0
            assert seen[-1][0] is COMPLETED

    run(test())


@pytest.mark.release
def test_a_cancel_elsewhere_takes_the_body_with_it(service, tmp_path):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit()
            await one.processing(job_id)
            await two.service.remove(job_id, key="")
            assert list((tmp_path / "shared" / "bodies").iterdir()) == []
            one.script.open_gate()

    run(test())


def test_a_result_of_a_job_that_was_deleted_elsewhere_is_none(service, tmp_path):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit()
            await one.processing(job_id)
            with frozen(one):
                await two.service.remove(job_id, key="")
                await two.service.remove(job_id, key="")
                one.script.open_gate()
                with pytest.raises(JobNotFound):
                    await one.ended(job_id)
                media = tmp_path / "shared" / "media"
                await until(lambda: list(media.iterdir()) == [])

    run(test())


@pytest.mark.release
def test_a_submit_whose_answer_from_the_database_was_lost_is_done_all_the_same(service):
    async def test():
        async with service("one") as one:
            store = one.service._storage._store
            insert = store.insert

            def insert_and_break(*args, **kwargs):
                insert(*args, **kwargs)
                raise StoreFailed

            store.insert = insert_and_break
            with pytest.raises(StoreFailed):
                await one.submit(idempotency_key="k")
            store.insert = insert
            again = await one.submit(idempotency_key="k")
            assert (await one.ended(again)).state is COMPLETED

    run(test())


def test_what_a_dead_server_left_is_taken_up_though_all_others_are_busy(service, database):
    async def test():
        async with service("one", gated=True) as one:
            own = [await one.submit("own 0", key="busy")]
            await one.processing(own[0], key="busy")
            own += [await one.submit(f"own {number}", key="busy") for number in range(1, 6)]
            left = await one.submit("left")
            lease = one.service._runner.live[left].record.media_id
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "UPDATE jobs SET owner = NULL, media_id = %s WHERE id = %s", ("f" * 32, left)
                )
            live = one.service._runner.live
            await until(lambda: left in live and live[left].record.media_id != lease)
            one.script.open_gate()
            assert (await one.ended(left)).state is COMPLETED
            assert {(await one.ended(job_id)).state for job_id in own} == {COMPLETED}
            assert one.registry.get_sample_value("flux_pulid_jobs_taken_over_total") == 1
            assert one.registry.get_sample_value("flux_pulid_leases_lost_total") == 1
            assert one.registry.get_sample_value("flux_pulid_leases_held") is not None

    run(test())


def test_a_late_result_of_a_server_that_was_frozen_is_dropped_with_its_pictures(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            job_id = await one.submit("p", seed=5)
            await one.processing(job_id)
            before = one.service._runner.live[job_id].record
            with frozen(one):
                record = await two.ended(job_id)
                assert (record.state, record.tries) == (COMPLETED, 2)
                assert record.media_id != before.media_id
                one.script.open_gate()
                assert await one.ended(job_id) == record
                await until(lambda: not picture_path(one, before).exists())
            assert picture_path(two, record).exists()
            assert one.service.unfinished_of("") == 0
            assert (await one.run("next")).state is COMPLETED

    run(test())


@pytest.mark.release
def test_a_call_of_v1_at_a_server_that_was_taken_for_dead_hears_that_it_was_interrupted(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            call = await one.submit(api="v1")
            await one.processing(call)
            with frozen(one):
                async with asyncio.timeout(PATIENCE_S):
                    while (await two.state(call)) is not FAILED:  # noqa: ASYNC110 - in the database
                        await asyncio.sleep(0.1)
            assert (await one.ended(call)).error_code == "interrupted"

    run(test())


@pytest.mark.release
def test_a_server_that_drains_gives_what_waits_to_the_other_at_once(service):
    async def test():
        async with service("one", gated=True) as one, service("two") as two:
            running = await one.submit("running")
            await one.processing(running)
            waiting = await one.submit("waiting")
            one.service.begin_drain()
            assert (await two.ended(waiting)).state is COMPLETED
            assert await two.state(running) is JobState.PROCESSING
            one.script.open_gate()
            assert (await two.ended(running)).tries == 1

    run(test())


@pytest.mark.release
def test_a_job_nobody_here_knows_although_it_is_ours_is_taken_up(service):
    """Its row was committed, and the connection broke before anybody heard of it."""

    async def test():
        async with service("one", gated=True) as one:
            job_id = await one.submit()
            await one.processing(job_id)
            one.service._runner.lose(one.service._runner.live[job_id])
            one.script.open_gate()
            assert (await one.ended(job_id)).state is COMPLETED

    run(test())


@pytest.mark.release
def test_a_place_for_files_that_takes_none_is_noticed_though_the_database_is_well(
    service, monkeypatch, tmp_path
):
    monkeypatch.setattr("server.jobs.runner.PROBE_EVERY_S", 0.2)

    async def test():
        async with service("one") as one:
            bodies = tmp_path / "shared" / "bodies"
            bodies.rename(tmp_path / "away")
            with pytest.raises(StoreFailed):
                await one.submit()
            await asyncio.sleep(1.0)  # in which it beats and looks
            assert one.service.not_ready_reason is not None
            (tmp_path / "away").rename(bodies)
            await until(lambda: one.service.not_ready_reason is None)
            assert (await one.run()).state is COMPLETED

    run(test())


@pytest.mark.release
def test_pictures_wait_for_their_place_to_take_them_again(service, monkeypatch, tmp_path):
    monkeypatch.setattr("server.jobs.runner.PROBE_EVERY_S", 0.1)
    monkeypatch.setattr("server.jobs.storage.TRY_AGAIN_S", 0.1)

    async def test():
        async with service("one", gated=True) as one:
            job_id = await one.submit()
            await one.processing(job_id)
            (tmp_path / "shared").rename(tmp_path / "away")
            one.script.open_gate()
            await asyncio.sleep(1.5)  # more than three tries
            assert not (await one.state(job_id)).has_ended
            (tmp_path / "away").rename(tmp_path / "shared")
            assert (await one.ended(job_id)).state is COMPLETED

    run(test())


def test_bodies_and_pictures_that_no_job_knows_are_cleared_after_their_time(service, monkeypatch, tmp_path):
    async def test():
        async with service("one", gated=True) as one:
            job_id = await one.submit()
            await one.processing(job_id)
            shared = tmp_path / "shared"
            (shared / "bodies" / f"{'a' * 32}.json").write_bytes(b"{}")
            (shared / "media" / ("b" * 32)).mkdir()
            storage = one.service._storage
            await storage.sweep(3600)
            assert len(list((shared / "bodies").iterdir())) == 2
            monkeypatch.setattr("server.jobs.storage.BODY_WITHOUT_JOB_S", 0.0)
            monkeypatch.setattr("server.jobs.storage.MEDIA_WITHOUT_JOB_S", 0.0)
            storage._media_cleared_at = -1.0
            await storage.sweep(3600)
            assert [path.name for path in (shared / "bodies").iterdir()] == [f"{job_id}.json"]
            assert list((shared / "media").iterdir()) == []
            one.script.open_gate()
            assert (await one.ended(job_id)).state is COMPLETED

    run(test())
