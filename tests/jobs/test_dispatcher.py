"""Which device gets which job: none idles while a job waits, and each job is on one device at a time."""

import time
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pulid.engine import GenerationRequest
from server.jobs.at_hand import PHOTOS, SHAPES, AtHand, mark_of
from server.jobs.dispatcher import MAX_BEGUN_BEFORE, Dispatcher
from server.jobs.files import OutputOptions
from server.jobs.job import JobRecord
from server.jobs.live import LiveJob
from server.jobs.messages import Admit, Cancel, Prepare, Watch
from server.jobs.scheduler import Scheduler

SMALL, LARGE = (512, 512), (1024, 1024)


class Hall:
    """A dispatcher, its jobs, and what the workers have been told."""

    def __init__(self, *devices, max_queued=1000):
        self.live, self.told = {}, []  # (device, message)
        self.preparing = {device: set() for device in devices}  # what a worker knows and has not begun
        self.running = {}  # device -> job
        self.dispatcher = Dispatcher(
            devices=devices,
            scheduler=Scheduler(max_queued),
            live=self.live,
            send=self.hear,
            photo_paths=lambda job_id, photos: (),
            now=lambda: 0.0,
        )
        for device in devices:
            self.dispatcher.device_ready(device)

    def hear(self, device, message):
        """What a worker would do. It is never told to begin a job beside another, or one it does not know."""
        self.told.append((device, message))
        match message:
            case Prepare(job_id=job_id):
                assert not any(job_id in known for known in self.preparing.values()), "it is elsewhere"
                assert job_id not in self.running.values()
                self.preparing[device].add(job_id)
                if message.is_admitted:
                    self.begin(device, job_id)
            case Admit(job_id):
                self.begin(device, job_id)
            case Cancel(job_id):
                self.preparing[device].discard(job_id)
                if self.running.get(device) == job_id:
                    del self.running[device]

    def begin(self, device, job_id):
        assert device not in self.running
        self.preparing[device].remove(job_id)
        self.running[device] = job_id

    def come(self, job_id, *, key="a", size=SMALL, photos=(), alone=False, front=False):
        """A job whose photos are there."""
        record = JobRecord(
            id=job_id,
            key=key,
            api="v2",
            submitted_at=0.0,
            deadline_at=9.0,
            width=size[0],
            height=size[1],
            media_id=job_id,
        )
        job = LiveJob(
            record, GenerationRequest(prompt="p", seed=1), OutputOptions(), photo_marks=photos, alone=alone
        )
        self.live[job_id] = job
        self.dispatcher.enqueue(job, front=front)
        self.dispatcher.make_ready(job)
        return job

    def painted(self, device):
        """The steps of what runs there are done; its pictures are still being saved."""
        job = self.live[self.running.pop(device)]
        self.dispatcher.denoised(job)
        return job

    def saved(self, job):
        self.dispatcher.forget(self.live.pop(job.id), is_painted=True)

    def end(self, device):
        self.saved(self.painted(device))

    def die(self, device):
        """Its worker dies; what it had goes back to the queue, what ran is alone from then on."""
        ran = self.running.pop(device, None)
        self.preparing[device].clear()
        for job in self.dispatcher.take_back(device):
            job.alone = job.alone or job.id == ran
            self.dispatcher.enqueue(job, front=True)
            self.dispatcher.make_ready(job)

    def beside(self, device):
        job = self.dispatcher._devices[device].ahead
        return None if job is None else job.id


# what is prepared ahead


def test_a_device_prepares_its_next_job_beside_the_first_and_begins_it_at_once():
    hall = Hall("one")
    for job_id in "abc":
        hall.come(job_id)
    assert [type(message) for _, message in hall.told] == [Prepare, Prepare]
    hall.painted("one")
    assert [type(message) for _, message in hall.told] == [Prepare, Prepare, Admit, Prepare]
    assert (hall.running, hall.beside("one")) == ({"one": "b"}, "c")


def test_nothing_is_prepared_ahead_while_a_device_is_idle():
    hall = Hall("one", "two")
    hall.come("a")
    hall.come("b")
    assert hall.running == {"one": "a", "two": "b"}
    hall.come("c")
    assert (hall.beside("one"), hall.beside("two")) == ("c", None)


def test_the_device_that_began_first_prepares_the_next():
    hall = Hall("one", "two")
    for job_id in "ab":
        hall.come(job_id)
    hall.end("one")
    hall.come("c")
    hall.come("d")
    assert hall.running == {"one": "c", "two": "b"}
    assert (hall.beside("two"), hall.beside("one")) == ("d", None)


# taken over


def test_an_idle_device_takes_over_what_another_one_prepares():
    hall = Hall("one", "two")
    for job_id in "abc":
        hall.come(job_id)
    assert hall.beside("one") == "c"
    hall.end("two")
    assert (hall.running, hall.beside("one")) == ({"one": "a", "two": "c"}, None)
    last_two = [(device, type(message), message.job_id) for device, message in hall.told[-2:]]
    assert last_two == [("one", Cancel, "c"), ("two", Prepare, "c")]
    assert hall.told[-1][1].is_admitted


def test_what_waits_in_the_queue_goes_before_what_is_prepared():
    hall = Hall("one", "two")
    for job_id in "abcde":
        hall.come(job_id)
    hall.end("two")
    assert (hall.running["two"], hall.beside("one"), hall.beside("two")) == ("d", "c", "e")


def test_the_job_that_was_chosen_first_is_taken_over_first():
    hall = Hall("one", "two", "three")
    for job_id in "abcde":
        hall.come(job_id)
    assert (hall.beside("one"), hall.beside("two"), hall.beside("three")) == ("d", "e", None)
    hall.end("three")
    assert hall.running["three"] == "d"


def test_who_has_lost_its_next_job_prepares_another():
    hall = Hall("one", "two")
    for job_id in "abc":
        hall.come(job_id)
    hall.end("two")
    hall.come("d")
    assert hall.beside("one") == "d"


def test_a_device_whose_engine_has_just_been_loaded_takes_over_too():
    hall = Hall("one", "two")
    hall.die("two")
    hall.come("a")
    hall.come("b")
    assert hall.beside("one") == "b"
    hall.dispatcher.device_ready("two")
    assert hall.running == {"one": "a", "two": "b"}


def test_nothing_is_taken_over_while_the_server_drains():
    hall = Hall("one", "two")
    for job_id in "abc":
        hall.come(job_id)
    hall.dispatcher.pause()
    hall.end("two")
    assert hall.running == {"one": "a"}


def test_a_watched_job_is_watched_at_the_device_that_takes_it_over():
    hall = Hall("one", "two")
    for job_id in "abc":
        hall.come(job_id)
    hall.live["c"].watchers = 1
    hall.dispatcher.watched(hall.live["c"])
    hall.end("two")
    watches = [(device, message) for device, message in hall.told if isinstance(message, Watch)]
    assert watches == [("one", Watch("c", True)), ("two", Watch("c", True))]


def test_a_job_that_is_taken_over_is_no_longer_its_first_devices():
    hall = Hall("one", "two")
    for job_id in "abc":
        hall.come(job_id)
    job = hall.live["c"]
    assert hall.dispatcher.has("one", job)
    hall.end("two")
    assert (hall.dispatcher.has("one", job), hall.dispatcher.has("two", job)) == (False, True)
    hall.die("one")
    assert hall.running["two"] == "c", "the death of the first costs it nothing"


def test_beside_a_long_job_no_more_than_so_many_later_ones_begin_before_it():
    hall = Hall("long", "short")
    for job_id in ("long one", "first", "beside"):
        hall.come(job_id)
    assert hall.beside("long") == "beside"
    order = []
    for number in range(3 * MAX_BEGUN_BEFORE):
        hall.come(f"later {number}")
        hall.come(f"more {number}")  # the queue is never empty
        hall.end("short")
        order.append(hall.running["short"])
    assert order.index("beside") == MAX_BEGUN_BEFORE
    assert hall.running["long"] == "long one"


def test_who_begins_a_job_that_was_late_keeps_its_own_next_one():
    hall = Hall("long", "short")
    for job_id in ("long one", "first", "beside"):
        hall.come(job_id)
    before = None
    while hall.running["short"] != "beside":
        hall.come(f"job {len(hall.told)}")
        hall.come(f"more {len(hall.told)}")
        before = hall.beside("short")
        hall.end("short")
    assert hall.beside("short") == before
    hall.end("short")
    assert hall.running["short"] == before


# alone


def test_a_job_that_is_alone_has_nothing_beside_it():
    hall = Hall("one")
    hall.come("a")
    hall.come("b", alone=True, front=True)
    hall.come("c")
    assert [message.job_id for _, message in hall.told] == ["a"], "not even prepared"
    job = hall.painted("one")
    assert hall.running == {}, "pictures are still being saved"
    hall.saved(job)
    assert (hall.running, hall.beside("one"), hall.preparing["one"]) == ({"one": "b"}, None, set())


def test_a_job_that_is_alone_is_taken_over_by_an_empty_device_and_by_no_other():
    hall = Hall("one", "two")
    hall.come("a")
    hall.come("b")
    hall.come("c", alone=True, front=True)
    assert hall.beside("one") == "c"
    job = hall.painted("two")
    assert hall.running == {"one": "a"}
    hall.saved(job)
    assert hall.running == {"one": "a", "two": "c"}


def test_a_job_that_is_alone_is_passed_over_by_a_device_that_may_not_have_it():
    hall = Hall("one", "two", "three")
    for job_id in "abc":
        hall.come(job_id)
    hall.come("d", alone=True, front=True)
    hall.come("e")
    assert (hall.beside("one"), hall.beside("two")) == ("d", "e")
    hall.painted("three")  # its pictures are still being saved
    assert hall.running == {"one": "a", "two": "b", "three": "e"}


def test_a_device_that_waits_with_one_alone_does_not_keep_others_waiting():
    hall = Hall("one", "two")
    hall.come("a")
    hall.come("b")
    hall.come("c", alone=True, front=True)
    job = hall.painted("two")
    hall.come("d")
    assert hall.running == {"one": "a", "two": "d"}
    hall.saved(job)
    hall.end("two")
    assert hall.running["two"] == "c"


# what is at hand


def test_of_idle_devices_the_one_that_has_painted_a_shape_gets_the_next_of_it():
    hall = Hall("one", "two", "three")
    for job_id, size in (("a", SMALL), ("b", LARGE)):
        hall.come(job_id, size=size)
    for device in ("one", "two"):
        hall.end(device)
    for number in range(3):
        hall.come(f"large {number}", size=LARGE)
        assert hall.running == {"two": f"large {number}"}
        hall.end("two")
    hall.come("small", size=SMALL)
    assert hall.running == {"one": "small"}


def test_a_new_shape_goes_to_the_device_that_has_idled_longest():
    hall = Hall("one", "two", "three")
    for number in range(6):
        hall.come(f"job {number}", size=(512, 512 + 16 * number))
        [device] = hall.running
        assert device == ("one", "two", "three")[number % 3]
        hall.end(device)


def test_of_idle_devices_the_one_that_has_read_a_photo_gets_the_next_job_with_it():
    hall = Hall("one", "two")
    for job_id, photo in (("a", 1), ("b", 2)):
        hall.come(job_id, photos=(photo,))
    hall.end("one")
    hall.end("two")
    for photo, device in ((1, "one"), (2, "two"), (1, "one")):
        hall.come(f"again {photo}", photos=(photo,))
        assert list(hall.running) == [device]
        hall.end(device)


def test_a_shape_counts_for_more_than_a_photo():
    hall = Hall("one", "two")
    hall.come("a", photos=(1,))
    hall.come("b", size=LARGE, photos=(2,))
    hall.end("one")
    hall.end("two")
    hall.come("c", size=LARGE, photos=(1,))
    assert list(hall.running) == ["two"]


def test_a_job_does_not_wait_for_the_device_that_would_suit_it():
    hall = Hall("one", "two")
    hall.come("a", photos=(1,))
    hall.come("b", photos=(1,))
    assert hall.running == {"one": "a", "two": "b"}


def test_with_its_worker_a_device_loses_what_it_had_at_hand():
    hall = Hall("one", "two")
    hall.come("a", size=LARGE)
    hall.end("one")
    hall.die("one")
    hall.dispatcher.device_ready("one")
    hall.come("b", size=LARGE)
    assert list(hall.running) == ["two"]


def test_after_a_job_was_taken_from_it_a_device_goes_on_with_the_shape_it_paints():
    hall = Hall("one", "two")
    hall.come("a", size=SMALL)
    hall.come("b", size=SMALL)
    hall.come("c", size=LARGE)
    hall.end("two")  # and takes over c
    for job_id, size in (("d", LARGE), ("e", LARGE), ("f", SMALL)):
        hall.come(job_id, size=size)
    assert (hall.beside("one"), hall.beside("two")) == ("d", "e")
    hall.end("one")
    assert (hall.running["one"], hall.beside("one")) == ("d", "f")


def test_what_is_at_hand_is_bounded():
    at_hand = AtHand()
    for number in range(1000):
        at_hand.painted((number,))
        at_hand.read((number,))
    assert sum(at_hand.has_painted((number,)) for number in range(1000)) == SHAPES
    assert at_hand.photos_among(range(1000)) == PHOTOS
    assert at_hand.has_painted((999,))


def test_the_mark_of_a_photo_is_that_of_its_bytes():
    photo = bytes(range(256)) * 1000
    assert mark_of(photo) == mark_of(bytes(photo))
    assert len({mark_of(photo), mark_of(photo[1:]), mark_of(photo[:-1]), mark_of(b"x" + photo[1:])}) == 4


# many


@pytest.mark.parametrize("devices", [1, 8])
def test_to_hand_out_a_job_among_ten_thousand_takes_less_than_a_millisecond(devices):
    names = [f"cuda:{number}" for number in range(devices)]
    hall = Hall(*names, max_queued=10_000)
    for number in range(10_000):
        size = (SMALL, LARGE, (512, 1024))[number % 3]
        hall.come(str(number), key=f"key{number % 100}", size=size, photos=(number % 50,))
    repeats = 200
    started = time.perf_counter()
    for number in range(repeats):
        hall.end(names[number % devices])
    # About 0.05 ms on a slow machine: an end is two events, and the device begins one job and chooses one.
    assert (time.perf_counter() - started) / repeats < 0.001
    assert len(hall.running) == devices


# any order of events


class DispatcherMachine(RuleBasedStateMachine):
    """Three devices and any events."""

    @initialize()
    def begin(self):
        self.hall = Hall("one", "two", "three")
        self.alive = {"one", "two", "three"}
        self.saving = []
        self.numbers = count()
        self.unfinished = set()

    @rule(
        key=st.sampled_from("ab"),
        size=st.sampled_from([SMALL, LARGE]),
        photo=st.integers(0, 3),
        alone=st.booleans(),
    )
    def come(self, key, size, photo, alone):
        job_id = str(next(self.numbers))
        self.unfinished.add(job_id)
        self.hall.come(job_id, key=key, size=size, photos=(photo,), alone=alone and photo == 0)

    @precondition(lambda self: self.hall.running)
    @rule(data=st.data())
    def paint(self, data):
        device = data.draw(st.sampled_from(sorted(self.hall.running)))
        self.saving.append((device, self.hall.painted(device)))

    @precondition(lambda self: self.saving)
    @rule(data=st.data())
    def save(self, data):
        _, job = self.saving.pop(data.draw(st.integers(0, len(self.saving) - 1)))
        self.unfinished.remove(job.id)
        self.hall.saved(job)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def cancel(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.unfinished)))
        self.unfinished.remove(job_id)
        self.saving = [(device, job) for device, job in self.saving if job.id != job_id]
        self.hall.dispatcher.forget(self.hall.live.pop(job_id))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data):
        device = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(device)
        self.saving = [(by, job) for by, job in self.saving if by != device]
        self.hall.die(device)

    @precondition(lambda self: len(self.alive) < 3)
    @rule(data=st.data())
    def come_back(self, data):
        device = data.draw(st.sampled_from(sorted({"one", "two", "three"} - self.alive)))
        self.alive.add(device)
        self.hall.dispatcher.device_ready(device)

    def has_begun(self, job_id):
        return job_id in self.hall.running.values() or any(job.id == job_id for _, job in self.saving)

    @invariant()
    def no_device_idles_while_a_job_could_begin_there(self):
        for device in self.alive - self.hall.running.keys():
            if self.hall.dispatcher._devices[device].has_one_alone:
                continue
            is_saving = any(by == device for by, _ in self.saving)
            for job_id in self.unfinished:
                if not self.has_begun(job_id):
                    assert self.hall.live[job_id].alone
                    assert is_saving

    @invariant()
    def nothing_is_beside_a_job_that_is_alone(self):
        for device, job_id in self.hall.running.items():
            beside = {*self.hall.preparing[device], *(job.id for by, job in self.saving if by == device)}
            if self.hall.live[job_id].alone:
                assert not beside
            assert not any(self.hall.live[other].alone for other in self.hall.preparing[device])

    @invariant()
    def nothing_runs_on_a_dead_device(self):
        assert self.hall.running.keys() <= self.alive

    def teardown(self):
        """Nobody is lost and nobody starves."""
        if not hasattr(self, "hall"):
            return
        for device in {"one", "two", "three"} - self.alive:
            self.hall.dispatcher.device_ready(device)
        for _, job in self.saving:
            self.hall.saved(job)
            self.unfinished.remove(job.id)
        while self.hall.running:
            device = min(self.hall.running)
            self.unfinished.remove(self.hall.running[device])
            self.hall.end(device)
        assert self.unfinished == set()


DispatcherMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestAnyOrderOfEvents = DispatcherMachine.TestCase
