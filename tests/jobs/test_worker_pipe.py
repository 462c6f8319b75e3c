"""The server's end of a worker's pipe, on both event loops that a server may run on."""

import asyncio

import pytest
import uvloop

from server.jobs.messages import Cancel, DeviceFault
from server.jobs.worker_pipe import WorkerPipe, pair

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request):
    """Run a coroutine on one of the loops."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield lambda work: runner.run(asyncio.wait_for(work, 10))


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_what_a_worker_said_before_its_end_is_heard_also_when_a_message_to_it_comes_too_late(run, messages):
    said = [DeviceFault("first"), DeviceFault("x" * 100_000), DeviceFault("last")]

    async def scene():
        heard = []
        ours, theirs = pair()
        pipe = await WorkerPipe.over(ours, heard.append)
        with theirs:
            for event in said:
                theirs.send(event)
        for _ in range(messages):
            pipe.send(Cancel("a" * 32))
        await pipe.ended
        assert heard == said

    run(scene())


def test_an_event_that_was_cut_off_ends_the_pipe(run):
    async def scene():
        heard = []
        ours, theirs = pair()
        pipe = await WorkerPipe.over(ours, heard.append)
        with theirs:
            theirs.send(DeviceFault("whole"))
            theirs._send(b"\0\0\1\0half")
        pipe.send(Cancel("a" * 32))
        await pipe.ended
        assert heard == [DeviceFault("whole")]

    run(scene())
