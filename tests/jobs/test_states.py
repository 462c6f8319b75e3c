"""The states of a job and the moves between them."""

import asyncio
import itertools

import pytest

from pulid.engine import GenerationRequest
from server.jobs.files import OutputOptions
from server.jobs.job import MOVES, Job, JobState

ENDS = {JobState.COMPLETED, JobState.FAILED}


def job_in(state):
    job = Job(id="j", request=GenerationRequest(prompt="p", seed=0), output=OutputOptions())
    job.state = state
    return job


@pytest.mark.parametrize(("start", "end"), list(itertools.product(JobState, JobState)))
def test_only_the_moves_of_the_table_are_possible(start, end):
    job = job_in(start)
    if end in MOVES[start]:
        job.move(end)
        assert job.state is end
    else:
        with pytest.raises(ValueError, match=f"from {start} to {end}"):
            job.move(end)
        assert job.state is start


def test_nothing_leads_out_of_an_end_and_nothing_skips_the_work():
    assert all(not MOVES[state] for state in ENDS)
    assert JobState.COMPLETED not in MOVES[JobState.QUEUED]


def test_the_words_are_the_wires():
    assert [str(state) for state in JobState] == ["QUEUED", "PROCESSING", "COMPLETED", "FAILED"]


def test_an_end_wakes_those_who_wait_and_stops_the_clock():
    async def scenario():
        job = job_in(JobState.QUEUED)
        assert job.generation_s == 0.0
        job.move(JobState.PROCESSING)
        assert job.started.is_set()
        assert not job.ended.is_set()
        job.move(JobState.COMPLETED)
        await asyncio.wait_for(job.ended.wait(), 1)
        assert job.generation_s > 0.0

    asyncio.run(scenario())
