"""Whose turn it is: fair between keys, in order within one, and a decision that never walks the queue."""

import sys
import time
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import server.jobs.scheduler as scheduler_module
from pulid.errors import Busy
from server.jobs.scheduler import LOOK_AHEAD, MAX_OVERTAKEN, MAX_OVERTAKEN_S, Scheduler, Waiting

SMALL, LARGE = (512, 512, 128, 1), (1024, 1024, 128, 1)


def waiting(job_id, key="a", *, shape=SMALL, submitted_at=0.0, alone=False):
    return Waiting(job_id=job_id, key=key, shape=shape, submitted_at=submitted_at, alone=alone)


def queue(*jobs, max_queued=1000, front=False):
    """A scheduler with these jobs waiting and ready: "a1" is a job of key "a"."""
    scheduler = Scheduler(max_queued)
    for job in jobs:
        add(scheduler, job if isinstance(job, Waiting) else waiting(job, job[0]), front=front)
    return scheduler


def add(scheduler, job, *, front=False):
    scheduler.add(job, front=front)
    scheduler.make_ready(job.job_id)


def turns(scheduler, many=1000, *, device="d", now=0.0, ending=True):
    """The next jobs; each ends before the next begins."""
    order = []
    while len(order) < many and (job := scheduler.next_job(device, now)) is not None:
        order.append(job.job_id)
        if ending:
            scheduler.ended(job.job_id)
    return order


# within a key


def test_jobs_of_a_key_start_in_the_order_they_came():
    assert turns(queue("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_the_order_is_that_of_arrival_even_if_the_clock_jumps_back():
    scheduler = queue(waiting("first", submitted_at=1000.0), waiting("second", submitted_at=5.0))
    assert turns(scheduler) == ["first", "second"]


def test_a_job_without_its_photo_waits_but_keeps_its_place():
    scheduler = queue()
    scheduler.add(waiting("a1"))
    add(scheduler, waiting("a2"))
    assert turns(scheduler) == ["a2"]
    add(scheduler, waiting("a3"))
    scheduler.make_ready("a1")
    scheduler.make_ready("a1")
    assert turns(scheduler) == ["a1", "a3"]


def test_a_photo_for_a_job_that_waits_no_longer_is_ignored():
    scheduler = queue("a1")
    assert turns(scheduler) == ["a1"]
    scheduler.make_ready("a1")
    scheduler.make_ready("never seen")
    assert scheduler.next_job("d", 0.0) is None


# between keys


def test_keys_take_turns():
    scheduler = queue("a1", "a2", "a3", "b1", "b2", "c1")
    assert turns(scheduler) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_the_key_with_the_fewest_jobs_on_devices_is_next():
    scheduler = queue("a1", "b1")
    assert [scheduler.next_job(device, 0.0).job_id for device in ("x", "y")] == ["a1", "b1"]
    for job in ("a2", "a3", "b2"):
        add(scheduler, waiting(job, job[0]))
    scheduler.ended("b1")
    # b was served last, but has nothing running.
    assert turns(scheduler, ending=False) == ["b2", "a2", "a3"]


def test_among_equals_the_key_served_longest_ago_is_next_even_after_it_was_away():
    scheduler = queue("a1", "b1", "c1")
    assert turns(scheduler) == ["a1", "b1", "c1"]
    for job in ("c2", "b2", "a2", "d1"):
        add(scheduler, waiting(job, job[0]))
    assert turns(scheduler) == ["d1", "a2", "b2", "c2"]


def test_a_flood_delays_another_key_by_the_running_job_and_the_one_ahead_at_most():
    scheduler = queue(*(f"a{number}" for number in range(500)))
    running, ahead = (scheduler.next_job("d", 0.0).job_id for _ in range(2))
    add(scheduler, waiting("b1", "b"))
    assert scheduler.position("b1") == 0
    started = [running, ahead]
    for _ in range(3):
        scheduler.ended(started[-2])
        started.append(scheduler.next_job("d", 0.0).job_id)
    assert started == ["a0", "a1", "b1", "a2", "a3"]


def test_a_steady_key_and_a_flood_share_a_device_evenly():
    scheduler = queue(*(f"a{number}" for number in range(100)))
    order = turns(scheduler, 1)
    for number in range(20):
        add(scheduler, waiting(f"b{number}", "b"))
        order += turns(scheduler, 2)
    assert sum(job.startswith("b") for job in order) == 20


# shapes


def test_a_device_goes_on_with_its_shape_and_then_with_whoever_is_first():
    jobs = [waiting(f"{shape[0]}-{n}", shape=shape) for n in range(3) for shape in (SMALL, LARGE)]
    assert turns(queue(*jobs)) == ["512-0", "512-1", "512-2", "1024-0", "1024-1", "1024-2"]


def test_each_device_has_a_shape_of_its_own():
    scheduler = queue(*(waiting(f"{n}", shape=(SMALL, LARGE)[n % 2]) for n in range(6)))
    order = [scheduler.next_job(device, 0.0).job_id for device in ("x", "y", "y", "x", "y", "x")]
    assert order == ["0", "1", "3", "2", "5", "4"]


def test_a_shape_never_takes_a_turn_from_another_key():
    scheduler = queue(waiting("a1", "a"), waiting("a2", "a"), waiting("b1", "b", shape=LARGE))
    assert turns(scheduler) == ["a1", "b1", "a2"]


def test_a_job_is_overtaken_eight_times_at_most():
    scheduler = queue(waiting("before"), waiting("large", shape=LARGE))
    order = turns(scheduler, 1)
    for number in range(20):
        add(scheduler, waiting(f"small{number}"))
        order += turns(scheduler, 1)
    assert order.index("large") == 1 + MAX_OVERTAKEN


def test_a_job_is_overtaken_for_thirty_seconds_at_most():
    scheduler = queue(waiting("before"), waiting("large", shape=LARGE))
    assert turns(scheduler, 1, now=0.0) == ["before"]
    for number in range(3):
        add(scheduler, waiting(f"small{number}"))
    # The time runs from when it is first overtaken.
    assert turns(scheduler, 1, now=1000.0) == ["small0"]
    assert turns(scheduler, 1, now=1000.0 + MAX_OVERTAKEN_S - 0.1) == ["small1"]
    assert turns(scheduler, 1, now=1000.0 + MAX_OVERTAKEN_S) == ["large"]


def test_a_job_overtaken_enough_stops_the_overtaking_of_those_before_it_too():
    scheduler = queue(waiting("before"))
    scheduler.add(waiting("late", shape=LARGE))
    add(scheduler, waiting("large", shape=(1, 1, 1, 1)))
    for number in range(MAX_OVERTAKEN + 1):
        add(scheduler, waiting(f"small{number}"))
    assert turns(scheduler, 1 + MAX_OVERTAKEN)[-1] == f"small{MAX_OVERTAKEN - 1}"
    scheduler.make_ready("late")
    assert turns(scheduler) == ["late", "large", f"small{MAX_OVERTAKEN}"]


def test_a_shape_is_looked_for_among_the_first_few_only():
    larges = [waiting(f"large{number}", shape=LARGE) for number in range(LOOK_AHEAD)]
    assert turns(queue(waiting("before"), *larges, waiting("far")), 2) == ["before", "large0"]
    assert turns(queue(waiting("before"), *larges[1:], waiting("near")), 2) == ["before", "near"]


# jobs that come back


def test_a_job_a_worker_died_over_is_first_of_all():
    scheduler = queue("a1", "b1", "c1")
    assert turns(scheduler, 1) == ["a1"]
    add(scheduler, waiting("a1", alone=True), front=True)
    assert scheduler.position("a1") == 0
    assert turns(scheduler) == ["a1", "b1", "c1"]


def test_a_job_that_comes_back_is_first_of_its_key_and_takes_no_turn_from_another():
    scheduler = queue("a1", "a2", "b1")
    assert turns(scheduler, 1) == ["a1"]
    add(scheduler, waiting("a1"), front=True)
    assert turns(scheduler) == ["b1", "a1", "a2"]


def test_jobs_that_come_back_start_oldest_first_and_are_not_overtaken():
    scheduler = queue(waiting("before"), waiting("new"))
    assert turns(scheduler, 1) == ["before"]
    add(scheduler, waiting("later", submitted_at=2.0, shape=LARGE), front=True)
    add(scheduler, waiting("earlier", submitted_at=1.0, shape=LARGE), front=True)
    assert turns(scheduler) == ["earlier", "later", "new"]


def test_after_a_restart_a_flood_of_old_jobs_does_not_delay_another_key():
    flood = [waiting(f"a{number}", submitted_at=number) for number in range(100)]
    scheduler = queue(*flood, max_queued=200, front=True)
    assert turns(scheduler, 1, ending=False) == ["a0"]
    add(scheduler, waiting("b", "b"))
    assert turns(scheduler, 2, ending=False) == ["b", "a1"]


# room


def test_a_full_queue_refuses_ready_or_not():
    scheduler = queue("a1", max_queued=2)
    scheduler.add(waiting("b1", "b"))
    with pytest.raises(Busy, match="All 2 places"):
        scheduler.add(waiting("b2", "b"))
    assert scheduler.remove("a1")
    scheduler.add(waiting("b2", "b"))


def test_a_key_with_nothing_waiting_finds_a_place_in_a_queue_that_others_have_filled():
    scheduler = queue("a1", "a2", max_queued=2)
    scheduler.add(waiting("b1", "b"))
    for job in (waiting("b2", "b"), waiting("a3")):
        with pytest.raises(Busy):
            scheduler.add(job)


def test_a_job_that_comes_back_is_never_refused():
    scheduler = queue("a1", max_queued=1)
    assert turns(scheduler) == ["a1"]
    scheduler.add(waiting("a2"))
    scheduler.add(waiting("a1"), front=True)
    assert len(scheduler) == 2


def test_a_job_cannot_be_there_twice():
    scheduler = queue("a1", "a2")
    scheduler.next_job("d", 0.0)
    for job_id in ("a1", "a2"):
        with pytest.raises(ValueError, match=f"{job_id} is already"):
            scheduler.add(waiting(job_id), front=True)


def test_a_removed_job_is_gone_and_a_running_one_is_not_removed():
    scheduler = queue("a1", "a2", "a3")
    scheduler.next_job("d", 0.0)
    assert (scheduler.remove("a2"), scheduler.remove("a2"), scheduler.remove("a1")) == (True, False, False)
    assert turns(scheduler) == ["a3"]


def test_counts_are_those_of_the_key():
    scheduler = queue("a1", "a2", "b1")
    scheduler.add(waiting("b2", "b"))
    scheduler.next_job("d", 0.0)
    assert [scheduler.waiting_of(key) for key in ("a", "b", "nobody")] == [1, 2, 0]
    assert len(scheduler) == 3


def test_an_end_counts_once_and_only_for_a_job_that_ran():
    """Else its key would look as if it had less than nothing running, and go first."""
    scheduler = queue("a1", "a2", "b1")
    scheduler.next_job("d", 0.0)
    for job_id in ("a1", "a1", "a2", "nobody"):
        scheduler.ended(job_id)
    assert turns(scheduler) == ["b1", "a2"]


# positions


def positions(scheduler, *job_ids):
    return [scheduler.position(job_id) for job_id in job_ids]


def test_positions_count_the_turns_of_other_keys():
    scheduler = queue("a1", "a2", "a3", "b1", "c1", "c2")
    assert positions(scheduler, "a1", "b1", "c1", "a2", "c2", "a3") == [0, 1, 2, 3, 4, 5]
    assert scheduler.position("nobody") is None
    assert turns(scheduler) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_job_about_to_overtake_is_next_and_those_it_passes_move_back_by_one():
    scheduler = queue(
        waiting("a1"), waiting("a2", shape=LARGE), waiting("a3", shape=LARGE), waiting("a4"), waiting("a5")
    )
    assert turns(scheduler, 1) == ["a1"]
    assert positions(scheduler, "a4", "a2", "a3", "a5") == [0, 1, 2, 3]


def test_a_job_without_its_photo_is_not_next_while_another_could_start():
    scheduler = queue()
    scheduler.add(waiting("a1"))
    scheduler.add(waiting("a2"))
    assert positions(scheduler, "a1", "a2") == [0, 1]
    scheduler.make_ready("a2")
    assert positions(scheduler, "a2", "a1") == [0, 1]
    add(scheduler, waiting("b1", "b"))
    assert positions(scheduler, "a2", "a1", "b1") == [0, 2, 1]


# ten thousand

MANY = 10_000
CROWDS = {
    "one key": lambda n: ("a", SMALL),
    "a key each": lambda n: (f"key{n}", SMALL),
    "a hundred keys, two shapes": lambda n: (f"key{n % 100}", (SMALL, LARGE)[n % 3 == 0]),
    "a flood beside small keys": lambda n: ("a" if n % 2 else f"key{n % 1000}", SMALL),
    "every shape different": lambda n: (f"key{n % 7}", (n,)),
}


def crowd(kind, many):
    scheduler = Scheduler(many)
    for number in range(many):
        key, shape = CROWDS[kind](number)
        add(scheduler, waiting(str(number), key, shape=shape))
    return scheduler


def lines_run(call):
    """How many lines of the scheduler a call runs."""
    lines = 0

    def trace(frame, event, _arg):
        nonlocal lines
        if frame.f_code.co_filename != scheduler_module.__file__:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("kind", CROWDS)
def test_no_operation_walks_ten_thousand_jobs(kind):
    scheduler = crowd(kind, MANY)
    extra = count(MANY)

    def come_and_go():
        job_id = str(next(extra))
        scheduler.add(waiting(job_id, "key0"), front=True)
        scheduler.make_ready(job_id)
        scheduler.remove(job_id)

    for number in range(0, MANY, 501):
        assert lines_run(come_and_go) < 400
        assert lines_run(lambda number=number: scheduler.position(str(number))) < 400
        assert lines_run(lambda: scheduler.ended(scheduler.next_job("d", 0.0).job_id)) < 400


@pytest.mark.parametrize("kind", CROWDS)
def test_a_decision_and_a_position_take_less_than_a_millisecond_among_ten_thousand(kind):
    scheduler = crowd(kind, MANY)
    repeats = 200

    def seconds_each(call):
        start = time.perf_counter()
        for number in range(repeats):
            call(number)
        return (time.perf_counter() - start) / repeats

    # About 0.02 ms each on a slow machine.
    assert seconds_each(lambda number: scheduler.position(str(MANY - 1 - number))) < 0.001
    assert seconds_each(lambda number: scheduler.next_job("d", float(number))) < 0.001


# any order of events


class SchedulerMachine(RuleBasedStateMachine):
    """One device and any events. The model is a plain list, walked as the scheduler must not."""

    @initialize(max_queued=st.integers(1, 12))
    def begin(self, max_queued):
        self.max_queued = max_queued
        self.scheduler = Scheduler(max_queued)
        self.line = []  # waiting, in the order in which jobs of a key have their places
        self.ready = set()
        self.running = {}
        self.gone = set()
        self.served = {}  # key → number of its last turn
        self.overtaken = {}  # job → times at which
        self.shape = None
        self.now = 0.0
        self.asked_at = None
        self.numbers = count()

    def place(self, job, front):
        rank = 0 if job.alone else 1 if front else 2
        return (rank, job.submitted_at if rank < 2 else 0.0, next(self.numbers))

    def put(self, job, *, front):
        self.scheduler.add(job, front=front)
        self.line.append((self.place(job, front), job))
        self.line.sort(key=lambda entry: entry[0])

    def waiting_jobs(self, key=None):
        return [job for _, job in self.line if key in (None, job.key)]

    def ready_jobs(self, key=None):
        return [job for job in self.waiting_jobs(key) if job.job_id in self.ready]

    def running_of(self, key):
        return sum(job.key == key for job in self.running.values())

    def forget(self, job):
        self.line = [entry for entry in self.line if entry[1] is not job]
        self.ready.discard(job.job_id)

    @rule(key=st.sampled_from("abc"), shape=st.sampled_from([SMALL, LARGE]), ready=st.booleans())
    def arrive(self, key, shape, ready):
        job = waiting(f"{key}{next(self.numbers)}", key, shape=shape, submitted_at=self.now)
        if len(self.line) >= self.max_queued and self.waiting_jobs(key):
            with pytest.raises(Busy):
                self.scheduler.add(job)
            return
        self.put(job, front=False)
        if ready:
            self.photo_of(job)

    def photo_of(self, job):
        self.scheduler.make_ready(job.job_id)
        self.ready.add(job.job_id)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def photo_comes(self, data):
        self.photo_of(data.draw(st.sampled_from(self.waiting_jobs())))

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(self.waiting_jobs()))
        assert self.scheduler.remove(job.job_id)
        self.forget(job)
        self.gone.add(job.job_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        job = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.scheduler.ended(job.job_id)
        self.gone.add(job.job_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), alone=st.booleans())
    def worker_dies(self, data, alone):
        job = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.scheduler.ended(job.job_id)
        self.overtaken.pop(job.job_id, None)
        self.put(
            waiting(job.job_id, job.key, shape=job.shape, submitted_at=job.submitted_at, alone=alone),
            front=True,
        )

    @rule(seconds=st.sampled_from([0.5, 10.0, 31.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def device_asks(self):
        expected = [job for job in self.waiting_jobs() if self.scheduler.position(job.job_id) == 0]
        job = self.scheduler.next_job("d", self.now)
        if job is None:
            assert not self.ready_jobs()
            return
        assert job in self.ready_jobs()
        if self.asked_at in (None, self.now):
            assert expected == [job]
        self.check_turn(job)
        self.check_place(job)
        self.forget(job)
        self.running[job.job_id] = job
        self.served[job.key] = next(self.numbers)
        self.shape, self.asked_at = job.shape, self.now

    def check_turn(self, job):
        alone = {other.key for other in self.ready_jobs() if other.alone}
        keys = alone or {other.key for other in self.ready_jobs()}
        claims = {key: (self.running_of(key), self.served.get(key, -1)) for key in keys}
        assert job.key in keys
        assert claims[job.key] == min(claims.values())

    def check_place(self, job):
        line = self.ready_jobs(job.key)
        passed = line[: line.index(job)]
        ranks = {id(entry_job): place[0] for place, entry_job in self.line}
        for other in passed:
            assert job.shape == self.shape != other.shape
            assert ranks[id(other)] == 2
            times = self.overtaken.setdefault(other.job_id, [])
            times.append(self.now)
            assert len(times) <= MAX_OVERTAKEN
            assert times[-1] - times[0] < MAX_OVERTAKEN_S

    @invariant()
    def counts_are_right(self):
        assert len(self.scheduler) == len(self.line)
        for key in "abc":
            assert self.scheduler.waiting_of(key) == len(self.waiting_jobs(key))

    @invariant()
    def positions_are_right(self):
        seen = {job.job_id: self.scheduler.position(job.job_id) for job in self.waiting_jobs()}
        assert all(0 <= position < len(self.line) for position in seen.values())
        for key in "abc":
            own = [seen[job.job_id] for job in self.waiting_jobs(key)]
            assert len(set(own)) == len(own)
            rest = [position for position in own if position > 0]
            assert rest == sorted(rest)
        if self.ready_jobs():
            assert sum(position == 0 for position in seen.values()) == 1
        for job_id in [*self.running, *self.gone]:
            assert self.scheduler.position(job_id) is None

    def teardown(self):
        """Nobody starves and nobody is lost: so many turns give so many different jobs."""
        if not hasattr(self, "scheduler"):
            return
        for job in self.waiting_jobs():
            self.photo_of(job)
        expected = {job.job_id for job in self.waiting_jobs()}
        for _ in range(len(expected)):
            self.device_asks()
        assert expected <= self.running.keys()
        assert self.scheduler.next_job("d", self.now) is None
        assert len(self.scheduler) == 0


SchedulerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = SchedulerMachine.TestCase
