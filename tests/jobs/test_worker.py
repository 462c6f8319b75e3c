"""The worker's loop alone: one thread, one engine, notes in, reports out."""

import queue
import threading

import pytest

from fakes import PATIENCE_S, ScriptedEngine
from pulid.engine import GenerationRequest, StepEvent
from pulid.errors import Busy, DeviceUnavailable, EngineFailed, NoFaceFound
from server.jobs.worker import EngineLost, EngineReady, JobStarted, Worker


class Desk:
    """A worker and what it reports, in order."""

    def __init__(self, engine, create_engine=None):
        self.reports = queue.Queue()
        self.engine = engine
        self.worker = Worker(create_engine or (lambda: engine), self.reports.put)
        self.worker.start()

    def next(self):
        return self.reports.get(timeout=PATIENCE_S)

    def last_of(self, job_id):
        """Read on until a job's last event."""
        while True:
            report = self.next()
            if isinstance(report, StepEvent) and report.job_id == job_id and report.is_last:
                return report


@pytest.fixture
def desk():
    """Make desks; their workers are stopped at the end."""
    desks = []

    def make(engine=None, **options):
        desks.append(Desk(engine or ScriptedEngine(), **options))
        return desks[-1]

    yield make
    for made in desks:
        made.worker.stop(PATIENCE_S)


def asked(prompt="p", num_steps=3):
    return GenerationRequest(prompt=prompt, seed=1, width=32, height=32, num_steps=num_steps)


def test_a_job_is_started_stepped_and_reported_to_its_end(desk):
    made = desk()
    assert made.next() == EngineReady(made.engine.info)
    made.worker.admit("a", asked(num_steps=3))
    assert made.next() == JobStarted("a")
    events = [made.next() for _ in range(3)]
    assert [(event.step, event.is_last) for event in events] == [(1, False), (2, False), (3, True)]
    assert events[-1].result.images[0].shape == (32, 32, 3)


def test_jobs_run_in_the_order_in_which_they_came(desk):
    made = desk()
    for job_id in "abc":
        made.worker.admit(job_id, asked())
    assert made.last_of("c").result is not None
    assert list(made.engine.admitted) == ["a", "b", "c"]


def test_an_engine_with_room_gets_a_second_job_between_two_steps(desk):
    engine = ScriptedEngine(gated=True, places=2)
    made = desk(engine)
    made.worker.admit("a", asked(num_steps=5))
    assert engine.wait_for(lambda: "a" in engine.admitted)
    made.worker.admit("b", asked(num_steps=5))
    engine.run_steps(1)
    assert engine.wait_for(lambda: "b" in engine.admitted)
    assert engine.steps["a"] == 1
    engine.open_gate()
    assert made.last_of("b").result is not None


def test_a_job_cancelled_while_running_stops_within_one_step(desk):
    engine = ScriptedEngine(gated=True)
    made = desk(engine)
    made.worker.admit("a", asked(num_steps=20))
    engine.run_steps(3)
    assert engine.wait_for(lambda: engine.steps.get("a") == 3)
    made.worker.cancel("a")
    engine.run_steps(1)  # the one that may be running already
    assert engine.wait_for(lambda: engine.cancelled == ["a"])
    assert engine.steps["a"] <= 4


def test_a_job_cancelled_while_waiting_is_never_begun(desk):
    engine = ScriptedEngine(gated=True)
    made = desk(engine)
    for job_id in "abc":
        made.worker.admit(job_id, asked())
    made.worker.cancel("b")
    engine.open_gate()
    assert made.last_of("c").result is not None
    assert list(engine.admitted) == ["a", "c"]


def test_cancelling_what_is_unknown_or_done_harms_nothing(desk):
    made = desk()
    made.worker.cancel("nobody")
    made.worker.admit("a", asked())
    made.last_of("a")
    made.worker.cancel("a")
    made.worker.admit("b", asked())
    assert made.last_of("b").result is not None


@pytest.mark.parametrize("fault", [NoFaceFound(), Busy("full"), EngineFailed("broken")])
def test_an_engines_own_error_at_admission_reaches_the_job_as_it_is(desk, fault):
    made = desk()
    made.engine.fail_admit["bad"] = fault
    made.worker.admit("a", asked("bad"))
    assert made.last_of("a").error is fault
    made.worker.admit("b", asked())
    assert made.last_of("b").result is not None


def test_an_unexpected_error_becomes_an_engine_fault_without_its_text(desk):
    made = desk()
    made.engine.fail_admit["bad"] = RuntimeError("a private prompt")
    made.worker.admit("a", asked("bad"))
    error = made.last_of("a").error
    assert isinstance(error, EngineFailed)
    assert "private" not in str(error)
    assert error.__traceback__ is None, "a traceback keeps tensors alive"
    assert error.__context__ is None


def test_a_step_that_breaks_ends_all_that_were_in_it_and_no_other(desk):
    engine = ScriptedEngine(gated=True, places=2)
    made = desk(engine)
    engine.fail_step["bad"] = RuntimeError("x")
    made.worker.admit("a", asked())
    made.worker.admit("b", asked("bad"))
    made.worker.admit("c", asked())
    engine.open_gate()
    errors = {event.job_id: event.error for event in (made.last_of("a"), made.last_of("b"))}
    assert all(isinstance(error, EngineFailed) for error in errors.values())
    assert set(engine.cancelled) == {"a", "b"}
    assert made.last_of("c").result is not None


def test_a_setup_error_is_reported_as_it_is_and_the_thread_ends(desk):
    fault = DeviceUnavailable("no card")

    def create_engine():
        raise fault

    made = desk(create_engine=create_engine)
    assert made.next() == EngineLost(fault)
    made.worker.stop(PATIENCE_S)
    assert not made.worker.is_alive


def test_stopping_ends_after_the_current_step_and_closes_the_engine(desk):
    engine = ScriptedEngine(gated=True)
    made = desk(engine)
    made.worker.admit("a", asked(num_steps=20))
    assert engine.wait_for(lambda: "a" in engine.admitted)
    stopper = threading.Thread(target=made.worker.stop, args=(PATIENCE_S,))
    stopper.start()
    engine.run_steps(2)
    stopper.join(PATIENCE_S)
    assert engine.closed
    assert not made.worker.is_alive
    assert engine.steps["a"] <= 2
