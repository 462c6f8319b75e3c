"""Engines that are reached by calls: a service over two of them, and calls that break."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from fakes import Script
from jobs.serving import PATIENCE_S, PHOTO, PICTURE, serving, until
from pulid.errors import Busy, EngineFailed
from server.jobs import remote_engines
from server.jobs.engine_host import EngineHost
from server.jobs.files import MediaFiles
from server.jobs.job import JobState, NotReady
from server.jobs.messages import Finished
from server.jobs.remote_engines import RemoteEngines
from server.security.image_decode import decode_image


class Cable:
    """Calls of hosts in this process, that a test can cut. The least busy one gets a call."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.calls = {}  # how many are open, by host
        self.cut = set()
        self.orders = []

    async def info(self):
        return self.hosts[0].require_engine()

    async def paint(self, order, photos):
        host = min(self.hosts, key=lambda host: self.calls.get(host, 0))
        self.orders.append(order)
        self.calls[host] = self.calls.get(host, 0) + 1
        try:
            async for event in host.paint(order, photos):
                if order.request.prompt in self.cut and not isinstance(event, Finished):
                    self.cut.discard(order.request.prompt)
                    raise ConnectionResetError("the cable was cut")
                yield event
        finally:
            self.calls[host] -= 1

    async def ask(self, question):
        return await self.hosts[0].ask(question)

    async def watch(self, job_id, on):
        for host in self.hosts:
            host.watch(job_id, on)


@asynccontextmanager
async def over_two_engines(tmp_path, **options):
    """A service with four places at two engines."""
    script = Script(tmp_path / "script", gated=options.get("gated", False))
    script.folder.mkdir(exist_ok=True)
    async with AsyncExitStack() as hosts:
        cable = Cable([])
        for number in range(2):
            host = EngineHost(
                device=f"engine-{number}",
                create_engine=script,
                decode_photo=decode_image,
                media=MediaFiles(tmp_path / "data" / "media"),
            )
            hosts.push_async_callback(host.close)
            cable.hosts.append(host)
        await asyncio.gather(*(host.start() for host in cable.hosts))
        places = tuple(f"place-{number}" for number in range(4))
        make_pool = partial(RemoteEngines, engines=cable)
        async with serving(tmp_path, devices=places, make_pool=make_pool, **options) as here:
            here.cable = cable
            yield here


def test_jobs_are_painted_by_both_engines_and_told_as_ever(tmp_path):
    @over(tmp_path)
    async def story(here):
        ids = [await here.submit(f"portrait {number}, slow 0.05 s per step") for number in range(6)]
        seen = []
        async for view in here.service.events(ids[0], key=""):
            seen.append((view.record.state, view.step))
        records = [await here.ended(job_id) for job_id in ids]
        assert {record.state for record in records} == {JobState.COMPLETED}
        assert {record.tries for record in records} == {1}
        assert seen[-1] == (JobState.COMPLETED, 2)
        assert (JobState.PROCESSING, 1) in seen
        assert {line["device"] for line in here.script.lines("admitted")} == {"engine-0", "engine-1"}
        assert len(await here.service.read_outputs(records[0])) == 1
        assert (await here.run("a call", api="v1")).state is JobState.COMPLETED


def test_a_cancelled_job_leaves_its_engine_before_the_next_step(tmp_path):
    @over(tmp_path, gated=True)
    async def story(here):
        job_id = await here.submit("portrait", num_steps=20)
        here.script.run_steps(2)
        await until(lambda: here.script.steps.get(job_id) == 2)
        view = await here.service.remove(job_id, key="")
        here.script.open_gate()
        await until(lambda: job_id in here.script.cancelled)
        assert view.record.error_code == "cancelled"
        assert here.script.steps[job_id] <= 3
        assert (await here.run("another")).state is JobState.COMPLETED


def test_a_job_whose_worker_dies_is_taken_up_and_has_an_engine_for_itself(tmp_path):
    @over(tmp_path)
    async def story(here):
        record = await here.run("crash once at step 2")
        assert (record.state, record.tries, record.deaths) == (JobState.COMPLETED, 2, 1)
        assert [order.alone for order in here.cable.orders] == [False, True]


def test_a_job_that_kills_twice_is_given_up_and_its_neighbour_is_not_charged(tmp_path):
    @over(tmp_path)
    async def story(here):
        killer = await here.submit("crash at step 1, slow 0.2 s per step")
        others = [await here.submit(f"portrait {number}, slow 0.05 s per step") for number in range(5)]
        assert isinstance((await here.ended(killer)).error, str)
        records = [await here.ended(job_id) for job_id in others]
        assert (await here.ended(killer)).error_code == EngineFailed.code
        assert [record.state for record in records] == [JobState.COMPLETED] * 5


def test_a_call_that_breaks_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_engines, "TRY_AGAIN_S", 0.01)

    @over(tmp_path)
    async def story(here):
        here.cable.cut.add("portrait")
        record = await here.run("portrait")
        assert record.state is JobState.COMPLETED
        assert len(here.cable.orders) == 2
        await until(lambda: all(here.service.workers.values()))


def test_a_job_alone_waits_for_others_and_others_wait_for_it(tmp_path):
    @over(tmp_path, gated=True)
    async def story(here):
        first = here.cable.hosts[1]
        del here.cable.hosts[1:]
        beside = await here.submit("portrait")
        await until(lambda: here.script.prepared == ["portrait"])
        suspect = await here.submit("suspect")
        here.service._runner.live[suspect].alone = True
        await until(lambda: len(here.cable.orders) == 2)
        later = await here.submit("later")
        await until(lambda: len(here.cable.orders) == 3)
        assert here.script.prepared == ["portrait"]
        here.script.open_gate()
        for job_id in (beside, suspect, later):
            assert (await here.ended(job_id)).state is JobState.COMPLETED
        assert here.script.prepared == ["portrait", "suspect", "later"]
        assert first.fault is None


def test_whoever_looks_on_gets_previews(tmp_path):
    @over(tmp_path, gated=True)
    async def story(here):
        job_id = await here.submit("portrait", num_steps=3)
        with here.service.watching(job_id):
            await until(lambda: bool(here.script.lines("watch")))
            here.script.open_gate()
            views = [view async for view in here.service.events(job_id, key="", previews=True)]
        assert any(view.preview for view in views)


def test_a_full_queue_refuses(tmp_path):
    @over(tmp_path, gated=True, max_queued=2)
    async def story(here):
        ids = [await here.submit(f"portrait {number}") for number in range(4)]
        await until(lambda: len(here.cable.orders) == 4)
        ids += [await here.submit(f"waiting {number}") for number in range(2)]
        with pytest.raises(Busy):
            await here.submit("one too many")
        here.script.open_gate()
        assert {(await here.ended(job_id)).state for job_id in ids} == {JobState.COMPLETED}


def test_a_question_is_answered_and_one_whose_call_breaks_says_so(tmp_path):
    @over(tmp_path)
    async def story(here):
        found = await here.service.faces(here.photo, timeout_s=PATIENCE_S)
        assert found.width == 64
        here.cable.hosts.clear()
        with pytest.raises(NotReady):
            await here.service.faces(here.photo, timeout_s=PATIENCE_S)


def test_what_is_painted_when_the_service_drains_is_finished(tmp_path):
    @over(tmp_path, gated=True)
    async def story(here):
        running = await here.submit("portrait")
        await until(lambda: here.script.prepared == ["portrait"])
        here.service.begin_drain()
        drained = asyncio.ensure_future(here.service.drained())
        await asyncio.sleep(0.05)
        assert not drained.done()
        here.script.open_gate()
        await asyncio.wait_for(drained, PATIENCE_S)
        assert (await here.ended(running)).state is JobState.COMPLETED


def over(tmp_path, **options):
    """Run a story at once, with a service over two engines."""

    def run(story):
        async def told():
            async with over_two_engines(tmp_path, photo=PHOTO, picture=PICTURE, **options) as here:
                await story(here)

        asyncio.run(asyncio.wait_for(told(), 60))

    return run
