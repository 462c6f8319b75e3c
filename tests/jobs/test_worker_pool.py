"""Worker processes, started, killed, frozen, started again: what the event loop hears of it, in order."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image

import server.jobs.worker_pool as module
from fakes import PATIENCE_S, Script, flat_picture
from pulid.engine import GenerationRequest
from pulid.errors import DeviceUnavailable, EngineFailed
from server.jobs.files import MediaFiles, OutputOptions
from server.jobs.messages import (
    Admit,
    Cancel,
    DeviceFault,
    EngineReady,
    Finished,
    JobFailed,
    OutOfService,
    Prepare,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
    WorkerDied,
)
from server.jobs.worker import EXIT_OUT_OF_MEMORY
from server.jobs.worker_pool import DEATHS_TO_GIVE_UP, WorkerPool
from server.security.image_decode import decode_image


class Hall:
    """A pool, what it said on the event loop, and a way to wait for more of it."""

    def __init__(self, folder, create_engine, *, devices=("one",), **options):
        self.folder, self.script, self.devices = folder, create_engine, devices
        self.loop_thread = threading.get_ident()
        self.said = []  # (device, event), in order
        self._more = asyncio.Event()
        self._read = 0
        self.pool = WorkerPool(
            devices=devices,
            create_engine=create_engine,
            decode_photo=partial(decode_image, max_megapixels=1.0),
            media=MediaFiles(folder / "media"),
            on_event=self._hear,
            **options,
        )

    def _hear(self, device, event):
        assert threading.get_ident() == self.loop_thread
        self.said.append((device, event))
        self._more.set()

    async def until(self, kind, *, device=None, job=None):
        """Read on to the next event of a kind (of a device, of a job)."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self._read < len(self.said):
                    by, event = self.said[self._read]
                    self._read += 1
                    fits = isinstance(event, kind) and device in (None, by)
                    if fits and job in (None, getattr(event, "job_id", None)):
                        return event
                self._more.clear()
                await self._more.wait()

    def begin(self, prompt="p", *, job="a", device="one", **changes):
        """Send a job on its way."""
        self.prepare(prompt, job=job, device=device, **changes)
        self.pool.send(device, Admit(job))

    def prepare(self, prompt="p", *, job="a", device="one", **changes):
        request = GenerationRequest(
            **{"prompt": prompt, "seed": 7, "width": 64, "height": 48, "num_steps": 3} | changes
        )
        self.pool.send(
            device,
            Prepare(
                job_id=job,
                request=request,
                photos=(self.folder / "photo",),
                output=OutputOptions(format="png"),
                media_id=f"{ord(job):032x}",
            ),
        )

    async def run(self, prompt="p", *, job="a", device="one"):
        self.begin(prompt, job=job, device=device)
        return await self.until(Finished | JobFailed, device=device, job=job)

    def kinds(self):
        return [type(event) for _, event in self.said]


async def until(condition):
    """Wait for what no event tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def worker_processes():
    """Of this file's pools; other tests' servers may be running in the same process."""
    names = {"worker one", "worker two"}
    return [child for child in multiprocessing.active_children() if child.name in names]


def pid_of(device="one"):
    (process,) = (child for child in worker_processes() if child.name == f"worker {device}")
    return process.pid


@pytest.fixture
def hall(tmp_path, monkeypatch) -> Iterator:
    """`async with hall(script options..., pool={...}) as it:`; afterwards nothing may be left."""
    (tmp_path / "media").mkdir()
    Image.fromarray(flat_picture(48, 64, (200, 120, 90))).save(tmp_path / "photo", "PNG")
    monkeypatch.setattr(module, "RESTART_DELAYS_S", (0.01, 0.01, 0.01))

    @asynccontextmanager
    async def opened(*, create_engine=None, pool=None, ready=True, **script):
        it = Hall(tmp_path, create_engine or Script(tmp_path, **script), **(pool or {}))
        await it.pool.start()
        try:
            for device in it.devices if ready else ():
                await it.until(EngineReady, device=device)
                it._read = 0
            it._read = len(it.said)
            yield it
        finally:
            await it.pool.stop(1.0)

    before = set(threading.enumerate())
    yield opened
    assert worker_processes() == []
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def told(test):
    """Run an async test."""

    def run(hall):
        asyncio.run(test(hall))

    run.__name__ = test.__name__
    return run


# the ordinary life


@told
async def test_a_job_runs_and_everything_is_told_on_the_event_loop_in_order(hall):
    async with hall() as it:
        assert isinstance(await it.run(), Finished)
        assert it.kinds() == [EngineReady, Preparing, Prepared, Stepping, *[Stepped] * 3, Finished]
        assert (it.folder / "media" / f"{ord('a'):032x}" / "0.png").exists()


@told
async def test_start_returns_before_the_engine_is_loaded(hall):
    async with hall(slow_to_load=True, ready=False) as it:
        assert it.said == []
        it.begin()  # kept until the engine is there
        it.script.let_load()
        await it.until(Finished, job="a")
        assert it.kinds()[0] is EngineReady


@told
async def test_every_device_has_a_worker_of_its_own(hall):
    async with hall(pool={"devices": ("one", "two")}) as it:
        it.begin("crash at step 1", job="a", device="one")
        assert isinstance(await it.run(job="b", device="two"), Finished)
        await it.until(EngineReady, device="one")
        assert {by for by, event in it.said if isinstance(event, WorkerDied)} == {"one"}
        assert {line["device"] for line in it.script.lines("loading")} == {"one", "two"}


@told
async def test_stop_lets_workers_end_and_close_their_engines(hall):
    async with hall() as it:
        it.begin(num_steps=10_000)
        await it.until(Stepped)
        await it.pool.stop(PATIENCE_S)
        assert worker_processes() == []
        assert it.script.closed
        assert WorkerDied not in it.kinds(), "it was asked to"


@told
async def test_stop_kills_what_does_not_end_in_time(hall):
    async with hall() as it:
        it.begin("stall at step 1")
        await it.until(Stepping)  # from here on it takes no notice of anything
        started = time.monotonic()
        await it.pool.stop(0.1)
        assert 0.1 <= time.monotonic() - started < 5.0
        assert worker_processes() == []
        assert WorkerDied not in it.kinds()


@told
async def test_a_stop_that_is_cancelled_leaves_no_process_either(hall):
    async with hall() as it:
        it.begin("stall at step 1")
        await it.until(Stepping)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await it.pool.stop(1.0)
        assert worker_processes() == []


@told
async def test_stop_does_not_wait_for_an_engine_that_is_being_loaded(hall):
    async with hall(slow_to_load=True, ready=False) as it:
        assert await asyncio.to_thread(it.script.wait_for, lambda: it.script.pids)
        started = time.monotonic()
        await it.pool.stop(PATIENCE_S)
        assert time.monotonic() - started < 5.0


@told
async def test_sending_never_blocks_even_when_nobody_reads(hall):
    async with hall() as it:
        os.kill(pid_of(), signal.SIGSTOP)
        started = time.monotonic()
        for _ in range(20):
            it.prepare("x" * 100_000)  # the pipe holds two of these
        assert time.monotonic() - started < 0.5
        it.pool.kill("one")
        await it.until(WorkerDied)
        await it.until(EngineReady)


# deaths


@told
async def test_a_worker_that_cannot_even_be_started_is_a_death_too(hall):
    async with hall(create_engine=lambda device, progress=None: None, ready=False) as it:  # no pickle of it
        assert (await it.until(WorkerDied)).exit_code is None
        await it.until(OutOfService)


@told
async def test_a_crash_in_a_step_is_charged_to_the_job_that_ran(hall):
    async with hall() as it:
        it.begin("crash at step 3", num_steps=5)
        died = await it.until(WorkerDied)
        assert died == WorkerDied(exit_code=-signal.SIGKILL, running=("a",), preparing=None)
        assert it.kinds()[-4:] == [Stepping, Stepped, Stepped, WorkerDied], "all that was said before it"
        await it.until(EngineReady)
        assert isinstance(await it.run(job="b"), Finished)


@told
async def test_a_crash_over_a_photo_is_charged_to_the_job_that_was_prepared(hall):
    async with hall() as it:
        it.prepare(job="a")
        await it.until(Prepared)
        it.prepare("crash while preparing", job="b")
        assert await it.until(WorkerDied) == WorkerDied(-signal.SIGKILL, running=(), preparing="b")


@told
async def test_a_crash_at_admission_is_charged_to_the_job_that_was_admitted(hall):
    async with hall() as it:
        it.begin("crash at admission")
        assert (await it.until(WorkerDied)).running == ("a",)


@told
async def test_a_job_beside_is_not_charged_while_it_only_waits(hall):
    async with hall(gated=True) as it:
        it.begin("crash at step 2", job="a")
        await it.until(Stepping)
        it.prepare(job="b")
        await it.until(Prepared, job="b")
        it.script.open_gate()
        assert await it.until(WorkerDied) == WorkerDied(-signal.SIGKILL, running=("a",), preparing=None)


@told
async def test_a_cancelled_job_is_not_charged(hall):
    async with hall() as it:
        it.begin("stall at step 1")
        await it.until(Stepping)
        it.pool.send("one", Cancel("a"))
        it.pool.kill("one")
        assert (await it.until(WorkerDied)).running == ()


@told
async def test_a_kill_from_outside_is_noticed_and_cured(hall):
    async with hall() as it:
        os.kill(pid_of(), signal.SIGKILL)
        assert await it.until(WorkerDied) == WorkerDied(-signal.SIGKILL, (), None)
        await it.until(EngineReady)
        assert isinstance(await it.run(), Finished)


@told
async def test_messages_to_a_dead_worker_do_not_reach_the_next_one(hall):
    async with hall() as it:
        it.pool.kill("one")
        it.begin(job="a")
        await it.until(EngineReady)
        assert isinstance(await it.run(job="b"), Finished)
        assert list(it.script.admitted) == ["b"]


@told
async def test_a_lost_device_is_told_before_the_death(hall):
    async with hall() as it:
        it.begin("lose the device at step 1")
        assert (await it.until(DeviceFault)).reason == "The device reported a fault."
        died = await it.until(WorkerDied)
        assert died.running == ("a",)
        assert died.exit_code > 0
        await it.until(EngineReady)


async def die(it, device="one"):
    """One more death of a worker, and the start of the next."""
    it.pool.kill(device)
    await it.until(WorkerDied, device=device)
    await until(lambda: f"worker {device}" in [child.name for child in worker_processes()])


@told
async def test_after_four_deaths_a_device_is_given_up_and_the_pool_says_why(hall):
    async with hall() as it:
        for _ in range(3):
            await die(it)
        await it.until(EngineReady)
        it.begin("lose the device at step 1")
        await it.until(WorkerDied)
        error = (await it.until(OutOfService)).error
        assert isinstance(error, EngineFailed)
        assert str(error) == (
            "The worker of one has died 4 times within 10 minutes, so none is started there again. "
            "The device reported a fault."
        )
        await asyncio.sleep(0.1)
        assert worker_processes() == []
        assert it.kinds()[-2:] == [WorkerDied, OutOfService]


@told
async def test_workers_that_end_for_want_of_memory_are_started_again_and_not_counted(hall):
    async with hall() as it:
        for _ in range(DEATHS_TO_GIVE_UP + 1):
            for job in "ab":
                it.begin("oom at step 1", job=job)
                await it.until(JobFailed)
            assert (await it.until(WorkerDied)).exit_code == EXIT_OUT_OF_MEMORY
            await it.until(EngineReady)
        assert OutOfService not in it.kinds()


@told
async def test_deaths_are_counted_by_device_and_the_others_go_on(hall):
    async with hall(pool={"devices": ("one", "two")}) as it:
        for _ in range(3):
            await die(it, "two")
        await die(it, "one")
        it.pool.kill("two")
        await it.until(OutOfService, device="two")
        await it.until(EngineReady, device="one")
        assert isinstance(await it.run(device="one"), Finished)
        assert [child.name for child in worker_processes()] == ["worker one"]


@told
async def test_deaths_far_apart_are_forgiven(hall):
    now = [0.0]
    async with hall(pool={"clock": lambda: now[0]}) as it:
        for _ in range(6):
            await die(it)
            now[0] += 201.0  # three within ten minutes
        await it.until(EngineReady)
        assert OutOfService not in it.kinds()


@told
async def test_a_pool_that_is_to_start_no_more_only_tells_of_deaths(hall):
    async with hall(pool={"devices": ("one", "two")}) as it:
        it.pool.kill("one")
        await it.until(WorkerDied, device="one")  # its next worker was about to be started
        it.pool.start_no_more()
        it.pool.kill("two")
        await it.until(WorkerDied, device="two")
        await asyncio.sleep(0.2)
        assert worker_processes() == []
        assert it.kinds()[-2:] == [WorkerDied, WorkerDied]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the pipe in /proc")
@told
async def test_a_worker_that_dies_in_the_middle_of_a_message_wedges_nobody(hall):
    async with hall(tears_a_message=True, ready=False) as it:
        await it.until(WorkerDied)
        await it.until(EngineReady)
        assert it.kinds() == [WorkerDied, EngineReady]
        assert isinstance(await it.run(), Finished)


# silence


@told
async def test_a_frozen_worker_with_work_is_killed_and_replaced(hall):
    async with hall(pool={"stall_floor_s": 0.2}) as it:
        it.begin("slow 0.001 s per step", num_steps=100_000)
        await it.until(Stepped)
        os.kill(pid_of(), signal.SIGSTOP)
        assert await it.until(WorkerDied) == WorkerDied(-signal.SIGKILL, ("a",), None)
        await it.until(EngineReady)
        assert isinstance(await it.run(job="b"), Finished)


@pytest.mark.parametrize(
    ("order", "running", "preparing"),
    [("stall at step 2", ("a",), None), ("stall while preparing", (), "a")],
)
def test_a_worker_that_hangs_over_a_job_is_killed_and_the_job_charged(hall, order, running, preparing):
    async def scenario():
        async with hall(pool={"stall_floor_s": 0.2}) as it:
            it.begin(order)
            assert await it.until(WorkerDied) == WorkerDied(-signal.SIGKILL, running, preparing)

    asyncio.run(scenario())


@told
async def test_a_worker_that_has_nothing_to_do_may_be_silent(hall):
    async with hall(pool={"stall_floor_s": 0.1}) as it:
        it.prepare()
        await it.until(Prepared)  # it waits for the server now
        os.kill(pid_of(), signal.SIGSTOP)
        await asyncio.sleep(0.4)
        os.kill(pid_of(), signal.SIGCONT)
        it.pool.send("one", Admit("a"))
        await it.until(Finished)
        assert WorkerDied not in it.kinds()


@told
async def test_loading_an_engine_may_take_its_time(hall):
    async with hall(slow_to_load=True, ready=False, pool={"stall_floor_s": 0.1}) as it:
        it.begin()
        await asyncio.sleep(0.4)
        it.script.let_load()
        await it.until(Finished)
        assert WorkerDied not in it.kinds()


# loading


@told
async def test_an_engine_that_cannot_be_set_up_is_not_tried_again(hall):
    async with hall(load_error=DeviceUnavailable("There is no such card."), ready=False) as it:
        error = (await it.until(OutOfService)).error
        assert isinstance(error, DeviceUnavailable)
        assert str(error) == "There is no such card."
        await until(lambda: not worker_processes())
        await asyncio.sleep(0.1)
        assert it.kinds() == [OutOfService]
        assert len(it.script.pids) == 1


@told
async def test_any_other_fault_of_loading_is_a_death(hall):
    async with hall(load_error=RuntimeError("the driver is busy"), ready=False) as it:
        assert "RuntimeError('the driver is busy')" in (await it.until(DeviceFault)).reason
        await it.until(WorkerDied)
        await it.until(DeviceFault)  # of the next worker


# the server's own end, and the terminal's Ctrl-C

SERVER = """
import asyncio, os, signal, sys
from functools import partial
from pathlib import Path
from fakes import Script
from server.jobs.files import MediaFiles
from server.jobs.messages import EngineReady
from server.jobs.worker_pool import WorkerPool
from server.security.image_decode import decode_image

async def main(folder, deed):
    ready = asyncio.Event()
    pool = WorkerPool(
        devices=["one"],
        create_engine=Script(folder),
        decode_photo=partial(decode_image, max_megapixels=1.0),
        media=MediaFiles(folder),
        on_event=lambda device, event: (print(type(event).__name__, flush=True), ready.set()),
    )
    signal.signal(signal.SIGINT, lambda *_: None)
    await pool.start()
    while not ready.is_set():
        if deed == "ctrl-c":
            os.killpg(0, signal.SIGINT)  # the whole group, the starting worker too
        await asyncio.sleep(0.005)
    if deed == "wait":
        await asyncio.sleep(1000)
    await pool.stop(10.0)

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def server_process(tmp_path):
    """Run SERVER, every warning an error, in a process group of its own."""
    (tmp_path / "script.py").write_text(SERVER)
    processes = []

    def start(deed):
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", tmp_path / "script.py", tmp_path, deed],
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_workers_do_not_outlive_a_server_that_is_killed(server_process):
    server = server_process("wait")
    assert server.stdout.readline() == "EngineReady\n"
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) == 2  # multiprocessing has a process of its own for each server
    server.kill()
    gone, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert alive == []
    assert len(gone) == 2


def test_a_server_survives_ctrl_c_while_it_starts_and_leaves_no_warning_and_no_process(server_process):
    server = server_process("ctrl-c")
    out, err = server.communicate(timeout=PATIENCE_S)
    assert (out, err, server.returncode) == ("EngineReady\n", "", 0)
    deadline = time.monotonic() + 2  # multiprocessing's own process notices a moment later
    while (left := _running_in_group(server.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def _running_in_group(leader):
    group = [process for process in psutil.process_iter(["status"]) if _group_of(process.pid) == leader]
    return [process for process in group if process.info["status"] != psutil.STATUS_ZOMBIE]


def _group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
