"""The states of a job and the moves between them."""

import itertools

import pytest

from server.jobs.job import MOVES, JobState

ENDS = {JobState.COMPLETED, JobState.FAILED}


def test_nothing_leads_out_of_an_end_and_nothing_skips_the_work():
    assert all(not MOVES[state] for state in ENDS)
    assert {state for state in JobState if state.has_ended} == ENDS
    assert JobState.COMPLETED not in MOVES[JobState.QUEUED]


@pytest.mark.parametrize(("start", "end"), list(itertools.product(JobState, JobState)))
def test_from_an_unfinished_state_everything_can_come_and_from_an_end_nothing(start, end):
    assert start.may_become(end) is (start is end or start not in ENDS)


def test_the_words_are_the_wires():
    assert [str(state) for state in JobState] == ["QUEUED", "PROCESSING", "COMPLETED", "FAILED"]
