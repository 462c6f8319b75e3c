"""What a worker is busy with, and when its silence is too long: told by messages, no process needed."""

from pathlib import Path

import pytest

from pulid.engine import GenerationRequest
from pulid.errors import EngineFailed
from server.jobs.files import OutputOptions
from server.jobs.messages import (
    Admit,
    AskFaces,
    AskFailed,
    Cancel,
    FacesFound,
    Finished,
    IdentityMade,
    JobFailed,
    Loading,
    Prepare,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
)
from server.jobs.worker_watch import WorkerWatch

FLOOR_S = 60.0


@pytest.fixture
def watch():
    return WorkerWatch(stall_floor_s=FLOOR_S, look_every_s=1.0)


def prepare(job, *, is_admitted=False):
    return Prepare(
        job_id=job,
        request=GenerationRequest(prompt="p", seed=1),
        photos=(Path("p"),),
        output=OutputOptions(),
        media_id="0" * 32,
        is_admitted=is_admitted,
    )


def tell(watch, *conversation, now=0.0):
    for message in conversation:
        if isinstance(message, Prepare | Admit | Cancel | AskFaces):
            watch.sent(message)
        else:
            watch.said(message, now)


def stalls_after(watch, *, start=0.0, limit=1000):
    """How many seconds of silence, looked at every second, until it counts as stalled."""
    watch.is_stalled(start)
    return next((seconds for seconds in range(1, limit) if watch.is_stalled(start + seconds)), None)


STORY = [
    (prepare("a"), (), None),
    (Preparing("a"), (), "a"),
    (Prepared("a", {}), (), None),
    (Admit("a"), ("a",), None),
    (Stepping("a"), ("a",), None),
    (prepare("b"), ("a",), None),
    (Preparing("b"), ("a",), "b"),
    (Stepped("a", 1, 1), ("a",), "b"),
    (Admit("b"), ("a",), "b"),
    (Prepared("b", {}), ("a", "b"), None),
    (Finished("a", "m", (), {}), ("b",), None),
    (JobFailed("b", EngineFailed("x")), (), None),
    (prepare("c", is_admitted=True), (), None),
    (Preparing("c"), (), "c"),
    (Prepared("c", {}), ("c",), None),
]


@pytest.mark.parametrize("length", range(1, len(STORY) + 1))
def test_it_is_known_who_runs_and_who_is_prepared(watch, length):
    tell(watch, *(message for message, _, _ in STORY[:length]))
    _, running, preparing = STORY[length - 1]
    assert (watch.running, watch.preparing) == (running, preparing)


@pytest.mark.parametrize(
    ("conversation", "has_work"),
    [
        ([], False),
        ([prepare("a")], True),
        ([prepare("a"), Preparing("a")], True),
        ([prepare("a"), Preparing("a"), Prepared("a", {})], False),
        ([prepare("a"), Preparing("a"), Prepared("a", {}), Admit("a")], True),
        ([prepare("a"), Cancel("a")], False),
        ([prepare("a"), Preparing("a"), Cancel("a"), Prepared("a", {})], False),
        ([prepare("a"), Preparing("a"), JobFailed("a", EngineFailed("x"))], False),
        ([Admit("nobody"), Cancel("nobody"), Finished("nobody", "m", (), {})], False),
    ],
)
def test_only_a_worker_that_the_server_waits_for_can_stall(watch, conversation, has_work):
    tell(watch, *conversation)
    assert watch.has_work == has_work
    assert (stalls_after(watch) is not None) == has_work


@pytest.mark.parametrize("event", [Preparing("a"), Prepared("b", {}), Stepping("a"), Stepped("a", 1, 9)])
def test_every_word_is_a_sign_of_life(watch, event):
    tell(watch, prepare("a"), Preparing("a"), Prepared("a", {}), Admit("a"))
    watch.is_stalled(0.0)
    for now in range(1, 500):
        if now % 50 == 0:
            watch.said(event, float(now))
        assert not watch.is_stalled(float(now))


ANSWERS = [
    FacesFound(question_id="q", faces=(), width=1, height=1),
    IdentityMade("q", b"an identity"),
    AskFailed("q", EngineFailed("x")),
]


def test_a_question_is_no_work_that_a_worker_could_be_killed_over(watch):
    tell(watch, AskFaces("q", b""))
    assert not watch.has_work
    assert stalls_after(watch) is None


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_job_that_waits_behind_questions_is_no_stall_while_they_are_answered(watch, answer):
    tell(watch, *(AskFaces("q", b"") for _ in range(8)), prepare("a"))
    watch.is_stalled(0.0)
    for now in range(1, 500):
        if now % 50 == 0:
            watch.said(answer, float(now))
        assert not watch.is_stalled(float(now))
    assert stalls_after(watch, start=500.0) is not None, "but then nothing was answered any more"


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_do_not_hide_that_the_steps_of_a_job_have_stopped(watch, answer):
    tell(watch, prepare("a"), Preparing("a"), Prepared("a", {}), Admit("a"), Stepping("a"))
    watch.is_stalled(0.0)
    stalled = []
    for now in range(1, 70):
        watch.said(answer, float(now))
        stalled.append(watch.is_stalled(float(now)))
    assert stalled.index(True) == 60


def test_how_far_an_engine_is_loaded_is_no_work_and_no_sign_of_life_of_a_job(watch):
    tell(watch, Loading("T5-XXL", 40))
    assert not watch.has_work
    tell(watch, prepare("a"))
    watch.is_stalled(0.0)
    stalled = []
    for now in range(1, 70):
        watch.said(Loading("T5-XXL", now), float(now))
        stalled.append(watch.is_stalled(float(now)))
    assert stalled.index(True) == 60


def test_the_steps_of_other_jobs_do_not_hide_that_saving_has_stopped(watch):
    tell(watch, *(prepare(job) for job in "ab"), *(Prepared(job, {}) for job in "ab"))
    tell(watch, Admit("a"), Stepping("a"), Stepped("a", 1, 1), Admit("b"), Stepping("b"))
    watch.is_stalled(0.0)
    stalled = []
    for now in range(1, 70):
        watch.said(Stepped("b", now, 999), float(now))
        stalled.append(watch.is_stalled(float(now)))
    assert stalled.index(True) == 60


@pytest.mark.parametrize("end", [Finished("a", "m", (), {}), JobFailed("a", EngineFailed("x")), Cancel("a")])
def test_while_one_job_after_the_other_is_saved_nothing_has_stopped(watch, end):
    """Nor where the next one comes to its end between two looks."""
    tell(watch, *(prepare(job) for job in "ab"), *(Prepared(job, {}) for job in "ab"), Admit("a"), Admit("b"))
    tell(watch, Stepping("a"), Stepped("a", 1, 1), Stepping("b"))
    watch.is_stalled(0.0)
    for now in range(1, 150):
        watch.said(Stepped("b", now, 50 if now == 50 else 999), float(now))
        if now == 50:
            tell(watch, end)
        assert watch.is_stalled(float(now)) == (now >= 110)


def test_a_long_time_without_pictures_to_save_is_no_silence_of_the_saving(watch):
    tell(watch, prepare("a"), Prepared("a", {}), Admit("a"), Stepping("a"))
    watch.is_stalled(0.0)
    for now in range(1, 160):
        watch.said(Stepped("a", now, 100), float(now))
        assert not watch.is_stalled(float(now))


def test_short_steps_leave_the_floor_and_long_ones_raise_it(watch):
    tell(watch, prepare("a"), Preparing("a"), Prepared("a", {}), Admit("a"))
    assert stalls_after(watch) == 61
    tell(watch, Stepping("a"), now=0.0)
    for step in range(1, 4):
        tell(watch, Stepped("a", step, 9), now=step * 10.0)
    assert watch.patience_s == 200.0
    assert stalls_after(watch, start=61.0) == 201


def test_one_long_step_among_many_does_not_count(watch):
    tell(watch, Stepping("a"), now=0.0)
    for step, now in enumerate([1.0, 2.0, 502.0, 503.0, 504.0], start=1):
        tell(watch, Stepped("a", step, 9), now=now)
    assert watch.patience_s == FLOOR_S


def test_the_time_between_two_jobs_is_no_step(watch):
    tell(watch, Stepping("a"), now=0.0)
    tell(watch, Stepped("a", 1, 1), now=10.0)
    tell(watch, Stepping("b"), now=5000.0)
    tell(watch, Stepped("b", 1, 1), now=5010.0)
    assert watch.patience_s == 200.0


def test_only_the_last_steps_are_remembered(watch):
    tell(watch, Stepping("a"), now=0.0)
    times = [float(step * 100) for step in range(1, 61)] + [6000.0 + step for step in range(1, 51)]
    for step, now in enumerate(times, start=1):
        tell(watch, Stepped("a", step, 999), now=now)
    assert watch.patience_s == FLOOR_S


def test_a_long_idle_time_is_no_silence(watch):
    stalls_after(watch)
    assert not watch.is_stalled(5000.0)
    tell(watch, prepare("a"))
    assert not watch.is_stalled(5001.0)
    assert not watch.is_stalled(5059.0)


def test_a_server_that_was_stopped_itself_does_not_blame_the_worker(watch):
    tell(watch, prepare("a"))
    watch.is_stalled(0.0)
    assert not watch.is_stalled(3600.0), "an hour in a debugger, or suspended"
    assert not watch.is_stalled(3650.0)
    assert any(watch.is_stalled(3650.0 + second) for second in range(1, 62)), "but then it counts"
