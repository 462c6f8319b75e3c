"""One worker process and its pipe: messages in, events out, pictures on disk, one exit code."""

import json
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fakes import PATIENCE_S, SECRET, Script, colour_of, flat_picture, own_part, paint, photo_of, preview_of
from pulid.engine import EngineInfo, GenerationRequest
from pulid.errors import DeviceUnavailable, EngineFailed, ImageRejected, NoFaceFound, OutOfMemory
from server.jobs.files import MediaFiles, OutputOptions
from server.jobs.job import StoreFull
from server.jobs.messages import (
    Admit,
    AskFaces,
    AskFailed,
    Cancel,
    DeviceFault,
    EngineFailedToLoad,
    EngineReady,
    FacesFound,
    Finished,
    JobFailed,
    Loading,
    Prepare,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
    Stop,
    Watch,
)
from server.jobs.worker import (
    EXIT_FAULT,
    EXIT_NO_ENGINE,
    EXIT_ORPHANED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    MAX_UNSAVED,
    WorkerSetup,
    run_worker,
)
from server.security.image_decode import decode_image

SPAWN = multiprocessing.get_context("spawn")
PHOTO = flat_picture(48, 64, (200, 120, 90))


class Desk:
    """The server's end of one worker process."""

    def __init__(self, folder, script):
        self.folder = folder
        self.script = script
        self.media = folder / "media"
        self.media.mkdir()
        self.photo = folder / "photo"
        Image.fromarray(PHOTO).save(self.photo, "PNG")
        setup = WorkerSetup(
            device="here",
            create_engine=script,
            decode_photo=partial(decode_image, max_megapixels=1.0),
            media=MediaFiles(self.media),
            log_format="json",
        )
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=run_worker, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()
        self.events = []  # everything heard

    def ready(self):
        self.until(EngineReady)
        return self

    def prepare(self, prompt="p", *, job="a", photo=None, output=None, is_admitted=False, **changes):
        """Send Prepare; returns the request as the engine will see it."""
        request = GenerationRequest(
            **{"prompt": prompt, "seed": 7, "width": 64, "height": 48, "num_steps": 3} | changes
        )
        self.pipe.send(
            Prepare(
                job_id=job,
                request=request,
                photos=(photo or self.photo,),
                output=output or OutputOptions(format="png"),
                media_id=media_id(job),
                is_admitted=is_admitted,
            )
        )
        return replace(request, id_images=(PHOTO,))

    def run(self, prompt="p", *, job="a", **changes):
        """A whole job; returns its last event."""
        self.prepare(prompt, job=job, **changes)
        self.pipe.send(Admit(job))
        return self.end_of(job)

    def next(self):
        assert self.pipe.poll(PATIENCE_S), f"nothing was said after {self.events[-3:]}"
        self.events.append(self.pipe.recv())
        return self.events[-1]

    def until(self, kind, job=None):
        """Read on to the next event of a kind (of a job)."""
        while True:
            event = self.next()
            if isinstance(event, kind) and job in (None, getattr(event, "job_id", None)):
                return event

    def end_of(self, job):
        return self.until(Finished | JobFailed, job)

    def said(self, job):
        """The kinds of everything that was said about a job, without repetitions."""
        kinds = [type(event) for event in self.events if getattr(event, "job_id", None) == job]
        return list(dict.fromkeys(kinds))

    def stored(self, job="a"):
        """The pictures of a job as they are on disk."""
        folder = self.media / media_id(job)
        return [np.asarray(Image.open(BytesIO(path.read_bytes()))) for path in sorted(folder.iterdir())]

    def exit_code(self):
        """Read to the end of the pipe, wait for the process."""
        try:
            while True:
                self.next()
        except (EOFError, OSError):
            self.process.join(PATIENCE_S)
            return self.process.exitcode

    def close(self):
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def media_id(job):
    return f"{ord(job):032x}"


@pytest.fixture
def desk(tmp_path):
    """Start a worker; it is killed at the end."""
    desks = []

    def start(**script):
        desks.append(Desk(tmp_path, Script(tmp_path, **script)))
        return desks[-1]

    yield start
    for made in desks:
        made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One worker for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("worker")
    made = Desk(folder, Script(folder)).ready()
    yield made
    made.close()


# a job from its photo to its files


def test_a_job_is_prepared_started_stepped_and_saved_in_this_order(shared):
    request = shared.prepare(num_outputs=2, seed=40)
    shared.pipe.send(Admit("a"))
    events = [shared.next() for _ in range(7)]
    assert events[0] == Preparing("a")
    assert isinstance(events[1], Prepared)
    assert set(events[1].timings) == {"decode_photo", "face", "text"}
    assert events[2:6] == [Stepping("a"), *(Stepped("a", step, 3) for step in (1, 2, 3))]
    assert isinstance(events[6], Finished)
    assert set(events[6].timings) == {"face", "text", "denoise", "decode", "encode"}
    files = events[6].files
    assert [(file.name, file.content_type, file.width, file.height) for file in files] == [
        ("0.png", "image/png", 64, 48),
        ("1.png", "image/png", 64, 48),
    ]
    for picture, expected, file in zip(shared.stored(), paint(request).images, files, strict=True):
        assert np.array_equal(picture, expected)
        assert file.size == (shared.media / media_id("a") / file.name).stat().st_size


def test_when_finished_is_said_the_pictures_have_their_final_names(shared):
    assert isinstance(shared.run(output=OutputOptions(format="webp")), Finished)
    assert [path.name for path in shared.media.iterdir() if path.name == media_id("a")]
    assert not list(shared.media.glob("*.tmp"))


def test_an_admission_that_comes_before_the_preparation_is_done_waits_for_it(shared):
    shared.prepare("slow 0.1 s while preparing", job="b")
    shared.pipe.send(Admit("b"))
    assert isinstance(shared.end_of("b"), Finished)
    assert shared.said("b") == [Preparing, Prepared, Stepping, Stepped, Finished]


def test_a_job_that_is_sent_admitted_waits_for_none(shared):
    shared.prepare(job="y", is_admitted=True)
    assert isinstance(shared.end_of("y"), Finished)
    assert shared.said("y") == [Preparing, Prepared, Stepping, Stepped, Finished]


def test_a_prepared_job_waits_for_its_admission(shared):
    shared.prepare(job="c")
    shared.until(Prepared, "c")
    assert not shared.pipe.poll(0.1)
    shared.pipe.send(Admit("c"))
    assert isinstance(shared.end_of("c"), Finished)


def test_cancelling_what_is_unknown_or_done_harms_nothing(shared):
    shared.pipe.send(Cancel("z"))
    shared.pipe.send(Admit("z"))
    assert isinstance(shared.run(job="d"), Finished)
    shared.pipe.send(Cancel("d"))
    assert isinstance(shared.run(job="e"), Finished)


def test_a_job_that_was_cancelled_may_come_again_under_the_same_id(shared):
    shared.prepare("first, slow 0.1 s while preparing", job="f")
    shared.until(Preparing, "f")
    shared.pipe.send(Cancel("f"))
    again = shared.prepare("second", job="f")
    shared.pipe.send(Admit("f"))
    assert isinstance(shared.end_of("f"), Finished)
    assert np.array_equal(shared.stored("f")[0], paint(again).images[0])


def test_between_two_photos_a_word_is_said_and_a_refusal_names_its_photo(shared):
    broken = shared.folder / "broken"
    broken.write_bytes(shared.photo.read_bytes()[:50])
    for job, photos in (("t", (shared.photo,) * 3), ("u", (shared.photo, broken, shared.photo))):
        shared.pipe.send(
            Prepare(
                job_id=job,
                request=GenerationRequest(prompt="p", seed=7),
                photos=photos,
                output=OutputOptions(),
                media_id=media_id(job),
            )
        )
    assert [shared.next() for _ in range(3)] == [Preparing("t")] * 3
    assert isinstance(shared.next(), Prepared)
    shared.pipe.send(Cancel("t"))
    assert [shared.next() for _ in range(2)] == [Preparing("u")] * 2
    failed = shared.next()
    assert isinstance(failed, JobFailed)
    assert isinstance(failed.error, ImageRejected)
    assert failed.error.photo == 1
    assert isinstance(shared.run(), Finished)


# questions


def as_png(pixels):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_question_is_answered_with_the_faces_and_the_size_of_the_upright_photo(shared):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    file = BytesIO()
    Image.fromarray(np.rot90(photo_of(2)).copy()).save(file, "PNG", exif=exif)
    shared.pipe.send(AskFaces("q", file.getvalue()))
    answer = shared.next()
    assert isinstance(answer, FacesFound)
    assert (answer.question_id, len(answer.faces), answer.width, answer.height) == ("q", 2, 64, 48)


@pytest.mark.parametrize(
    ("photo", "error", "words"),
    [
        (b"no photo", ImageRejected, "photo"),
        (as_png(photo_of(1, "oom")), OutOfMemory, "out of memory"),
        (as_png(photo_of(1, "raise")), EngineFailed, "internal fault"),
    ],
    ids=["unreadable", "oom", "raise"],
)
def test_a_question_that_fails_harms_nothing_else(shared, photo, error, words):
    for _ in range(3):
        shared.pipe.send(AskFaces("q", photo))
        answer = shared.next()
        assert isinstance(answer, AskFailed)
        assert type(answer.error) is error
        assert words in str(answer.error)
        assert SECRET not in str(answer.error)
    assert isinstance(shared.run(), Finished)


def test_a_device_that_is_lost_over_a_question_ends_the_worker_without_an_answer(desk):
    made = desk().ready()
    made.pipe.send(AskFaces("q", as_png(photo_of(1, "lose the device"))))
    assert made.exit_code() == EXIT_FAULT
    assert [type(event) for event in made.events] == [EngineReady, DeviceFault]


def test_questions_are_answered_in_the_middle_of_a_step(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a")
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")  # and now it stands at the gate
    made.pipe.send(AskFaces("q", as_png(photo_of(1))))
    assert isinstance(made.next(), FacesFound)
    made.script.open_gate()
    assert isinstance(made.end_of("a"), Finished)


# side by side


def test_the_next_photo_is_read_in_the_middle_of_a_step(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a")
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")  # and now it stands at the gate
    made.prepare(job="b")
    made.until(Prepared, "b")
    assert made.script.steps == {}
    made.script.open_gate()
    assert isinstance(made.end_of("a"), Finished)


def test_saving_overlaps_the_steps_of_the_next_job(desk):
    made = desk(gated=True).ready()
    for job in "ab":
        made.prepare(job=job, num_steps=1, width=1024, height=1024, output=OutputOptions(format="webp"))
        made.pipe.send(Admit(job))
    made.until(Prepared, "b")
    made.script.run_steps(1)
    made.until(Stepping, "b")
    assert isinstance(made.end_of("a"), Finished), "saved, though the engine stands at the gate"
    assert made.script.steps == {"a": 1}


def test_decoding_overlaps_the_steps_of_the_next_jobs_until_too_many_wait(desk):
    """Told by the order of events alone: the first pictures are held in their decoding."""
    made, jobs = desk().ready(), "abcdef"
    for job in jobs:
        made.prepare("held while decoding" if job == "a" else job, job=job)
        made.pipe.send(Admit(job))
    awaited = {(Stepped, jobs[MAX_UNSAVED - 1], 3), (Prepared, jobs[-1], None)}
    while awaited:
        event = made.next()
        awaited.discard((type(event), getattr(event, "job_id", None), getattr(event, "step", None)))
    assert not made.pipe.poll(0.1)
    assert made.script.steps == dict.fromkeys(jobs[:MAX_UNSAVED], 3)
    assert made.script.decoded == ["held while decoding"]
    assert not [event for event in made.events if isinstance(event, Finished)]
    made.script.let_decode()
    assert isinstance(made.end_of(jobs[-1]), Finished)
    assert [event.job_id for event in made.events if isinstance(event, Finished)] == list(jobs)


def test_a_job_that_is_cancelled_before_its_decoding_is_not_decoded(desk):
    made = desk().ready()
    for job, prompt in {"a": "held while decoding", "b": "unwanted"}.items():
        made.prepare(prompt, job=job, num_steps=1)
        made.pipe.send(Admit(job))
    made.until(Stepped, "b")
    made.pipe.send(Cancel("b"))
    made.prepare("wanted", job="c")
    made.pipe.send(Admit("c"))
    made.until(Prepared, "c")  # the cancel was read before it
    made.script.let_decode()
    assert isinstance(made.end_of("c"), Finished)
    assert made.script.decoded == ["held while decoding", "wanted"]
    assert Finished not in made.said("b")


def test_while_many_pictures_wait_for_the_disk_no_further_job_is_admitted(shared):
    made, jobs = shared, "lmnopqrs"
    made.events.clear()
    for job in jobs:
        made.prepare(job=job, num_steps=1, width=1024, height=1024, output=OutputOptions(format="webp"))
        made.pipe.send(Admit(job))
    made.end_of(jobs[-1])
    unsaved, most = 0, 0
    for event in made.events:
        unsaved += isinstance(event, Stepped) - isinstance(event, Finished)
        most = max(most, unsaved)
    assert 1 < most <= MAX_UNSAVED < len(jobs)
    assert sum(isinstance(event, Finished) for event in made.events) == len(jobs)


def test_an_engine_with_room_runs_two_jobs_at_once(desk):
    made = desk(gated=True, places=2).ready()
    for job in "abc":
        made.prepare(job=job, num_steps=5)
        made.pipe.send(Admit(job))
    made.until(Prepared, "c")
    made.script.run_steps(2)
    made.until(Stepped, "b")
    assert list(made.script.admitted) == ["a", "b"], "the engine has two places"
    made.script.open_gate()
    assert isinstance(made.end_of("c"), Finished)
    assert list(made.script.admitted) == ["a", "b", "c"]
    assert made.script.steps == {"a": 5, "b": 5, "c": 5}


# previews


def previews_of(desk, job):
    steps = [event for event in desk.events if isinstance(event, Stepped) and event.job_id == job]
    return {event.step: event.preview for event in steps if event.preview is not None}


def test_a_job_that_nobody_watches_has_no_previews(shared):
    shared.events.clear()
    assert isinstance(shared.run(job="t"), Finished)
    assert previews_of(shared, "t") == {}


def test_a_job_that_is_watched_before_it_is_admitted_has_previews_of_all_but_the_last_step(shared):
    shared.prepare("slow 0.1 s while preparing", job="u")
    shared.pipe.send(Watch("u", True))
    shared.pipe.send(Admit("u"))
    assert isinstance(shared.end_of("u"), Finished)
    assert previews_of(shared, "u") == {1: preview_of(1), 2: preview_of(2)}


def test_previews_are_turned_on_and_off_between_two_steps(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a", num_steps=9)
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")  # and now it stands at the gate
    for on, other in ((True, "b"), (False, "c")):
        made.pipe.send(Watch("a", on))
        made.prepare(job=other)
        made.until(Prepared, other)  # the watch was read before it
        made.script.run_steps(2)
        for _ in range(2):
            made.until(Stepped, "a")
    previews = set(previews_of(made, "a"))
    assert 2 in previews  # the first step had begun before the watch
    assert previews <= {2, 3}  # the third may have begun before its end, the fourth has not


def test_a_watch_of_a_job_that_has_ended_does_not_last(shared):
    assert isinstance(shared.run(job="v"), Finished)
    for job in ("v", "nobody"):
        shared.pipe.send(Watch(job, True))
    shared.events.clear()
    assert isinstance(shared.run(job="v"), Finished)
    assert previews_of(shared, "v") == {}


# likeness


def test_how_alike_everybody_is_comes_with_the_pictures(shared):
    finished = shared.run("alike 0.7 none", num_outputs=2, seed=5, measures_similarity=True)
    assert finished.similarities == tuple(
        (pytest.approx(0.7 + own_part(colour_of(seed))), None) for seed in (5, 6)
    )


def test_nobody_measures_what_was_not_asked_for(desk):
    made = desk().ready()
    assert made.run("alike 0.7").similarities == ()
    assert made.script.lines("likeness") == []


@pytest.mark.parametrize("fault", ["raise", "oom"])
def test_a_likeness_that_cannot_be_measured_costs_no_picture(capfd, desk, fault):
    made = desk().ready()
    finished = made.run(f"{fault} over the likeness", num_outputs=2, measures_similarity=True)
    assert isinstance(finished, Finished)
    assert finished.similarities == ((None,), (None,))
    assert len(made.stored()) == 2
    assert isinstance(made.run(job="b"), Finished), "the next one runs"
    logged = capfd.readouterr().err
    assert [json.loads(line)["event"] for line in logged.splitlines()] == ["likeness not measured"]
    assert SECRET not in logged


def test_a_device_that_is_lost_over_the_likeness_has_delivered_its_pictures(desk):
    made = desk().ready()
    finished = made.run("lose the device over the likeness", measures_similarity=True)
    assert isinstance(finished, Finished)
    assert len(made.stored()) == 1
    assert made.exit_code() == EXIT_FAULT
    assert [event for event in made.events if isinstance(event, DeviceFault)]


# cancels


def test_a_job_cancelled_while_running_stops_within_one_step(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a", num_steps=20)
    made.pipe.send(Admit("a"))
    made.script.run_steps(3)
    made.until(Stepped, "a")
    assert made.script.wait_for(lambda: made.script.steps.get("a") == 3)
    made.pipe.send(Cancel("a"))
    made.prepare(job="b", num_steps=1)
    made.pipe.send(Admit("b"))
    made.until(Prepared, "b")  # the cancel was read before it
    made.script.open_gate()
    assert isinstance(made.end_of("b"), Finished)
    assert made.script.cancelled == ["a"]
    assert made.script.steps["a"] <= 4, "the step that was running, and none after it"
    assert Finished not in made.said("a")


def test_a_job_cancelled_while_it_is_prepared_is_dropped(shared):
    shared.prepare("slow 0.2 s while preparing", job="g")
    shared.until(Preparing, "g")
    shared.pipe.send(Cancel("g"))
    shared.pipe.send(Admit("g"))
    assert isinstance(shared.run(job="h"), Finished)
    assert shared.said("g") == [Preparing]
    assert "g" not in shared.script.admitted


def test_a_job_cancelled_before_it_is_prepared_is_never_read(shared):
    shared.prepare("slow 0.2 s while preparing", job="i")
    shared.until(Preparing, "i")
    shared.prepare("the second of three", job="j")
    shared.pipe.send(Cancel("j"))
    assert isinstance(shared.run("the third of three", job="k"), Finished)
    assert "the second of three" not in shared.script.prepared
    assert shared.said("j") == []


# errors of one job


def test_an_unexpected_error_ends_its_job_without_a_word_of_its_text(capfd, desk):
    made = desk().ready()
    orders = ("raise while preparing", "raise at admission", "raise at step 2", "raise while decoding")
    for order in orders:
        failed = made.run(order)
        assert isinstance(failed.error, EngineFailed)
        assert "internal fault" in str(failed.error)
        assert SECRET not in str(failed.error)
    assert isinstance(made.run(job="b"), Finished), "the next one runs"
    logged = capfd.readouterr().err
    assert SECRET not in logged
    for line in map(json.loads, logged.splitlines()):
        assert (line["exception"], line["job_id"], line["device"]) == ("RuntimeError", "a", "here")
        assert any("fakes.py" in place for place in line["trace"])
    assert len(logged.splitlines()) == len(orders)


def test_a_photo_without_a_face_is_told_before_the_current_step_is_done(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a")
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")
    made.prepare("no face", job="b")
    failed = made.end_of("b")
    assert isinstance(failed.error, NoFaceFound)
    assert str(failed.error) == str(NoFaceFound())
    assert made.script.steps == {}


def test_a_file_that_is_no_photo_is_refused_and_the_limit_is_the_servers(shared, tmp_path):
    (tmp_path / "text").write_text("hello")
    assert isinstance(shared.run(photo=tmp_path / "text").error, ImageRejected)
    large = tmp_path / "large"
    Image.fromarray(flat_picture(1010, 1000, (1, 2, 3))).save(large, "PNG")
    assert "1 megapixels" in str(shared.run(photo=large).error)


def test_a_step_that_breaks_ends_all_that_were_in_it_and_no_other(desk):
    made = desk(gated=True, places=2).ready()
    for job, prompt in {"a": "good", "b": "raise at step 2", "c": "later"}.items():
        made.prepare(prompt, job=job)
        made.pipe.send(Admit(job))
    made.until(Prepared, "c")
    made.script.open_gate()
    assert isinstance(made.end_of("c"), Finished)
    failed = {event.job_id: event.error for event in made.events if isinstance(event, JobFailed)}
    assert "b" in failed
    assert all(isinstance(error, EngineFailed) for error in failed.values())
    assert set(made.script.cancelled) == set(failed)


def test_jobs_that_fail_over_their_photo_leave_nothing_behind(desk):
    made = desk().ready()
    prompts = {"negative_prompt": "x" * 1_000_000}

    def fail(many):
        for _ in range(many):
            made.prepare("no face, slow 0.01 s while preparing", **prompts)
            made.pipe.send(Admit("a"))
            assert isinstance(made.end_of("a").error, NoFaceFound)
        return psutil.Process(made.process.pid).memory_info().rss

    before = fail(10)
    assert fail(50) - before < 20_000_000  # bytes


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of another process")
def test_a_full_disk_fails_the_job_and_is_said_so(desk):
    made = desk().ready()
    large = {"width": 1536, "height": 1536, "output": OutputOptions(format="jpg")}
    set_file_size_limit(made.process.pid, 6_000)
    assert isinstance(made.run(**large).error, StoreFull)
    assert not list(made.media.iterdir())
    set_file_size_limit(made.process.pid, 10**9)
    assert isinstance(made.run(**large), Finished), "it serves again when there is room"
    assert made.events[-1].files[0].size > 6_000


def set_file_size_limit(pid, size):
    """Larger files fail with EFBIG, as on a full disk; of one process alone."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


# errors of the device


@pytest.mark.parametrize("when", ["while preparing", "at step 1", "while decoding"])
def test_out_of_memory_fails_its_job_and_the_second_in_a_row_ends_the_worker(desk, when):
    made = desk().ready()
    assert isinstance(made.run(f"oom {when}", job="a").error, OutOfMemory)
    assert isinstance(made.run(job="b"), Finished), "a picture in between: the row starts anew"
    assert isinstance(made.run(f"oom {when}", job="c").error, OutOfMemory)
    assert isinstance(made.run(f"oom {when}", job="c").error, OutOfMemory), "the same one, tried again"
    assert isinstance(made.run(f"oom {when}", job="d").error, OutOfMemory)
    assert "in a row" in made.until(DeviceFault).reason
    assert made.exit_code() == EXIT_OUT_OF_MEMORY


@pytest.mark.parametrize("when", ["while preparing", "at step 2", "while decoding"])
def test_a_lost_device_ends_the_worker_but_not_the_job(desk, when):
    made = desk().ready()
    made.prepare(f"lose the device {when}", job="a")
    made.pipe.send(Admit("a"))
    assert made.until(DeviceFault).reason == "The device reported a fault."
    assert made.exit_code() == EXIT_FAULT
    assert JobFailed not in made.said("a"), "it is tried again elsewhere"


def test_pictures_that_are_done_are_saved_although_the_device_is_lost(desk):
    made = desk(gated=True).ready()
    for job, prompt in {"a": "good", "b": "lose the device at step 1"}.items():
        made.prepare(prompt, job=job, num_steps=1, width=1024, height=1024)
        made.pipe.send(Admit(job))
    made.until(Prepared, "b")
    made.script.open_gate()
    assert made.exit_code() == EXIT_FAULT
    assert made.said("a")[-1] is Finished
    assert len(made.stored("a")) == 1


# loading and ending


def test_how_far_the_loading_is_comes_before_the_engine_and_is_in_the_log(desk, capfd):
    made = desk(loaded_percent=43)
    assert made.next() == Loading("FLUX transformer", 43)
    assert isinstance(made.next(), EngineReady)
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["part"], line["percent"]) == ("loading the engine", "FLUX transformer", 43)


def test_a_ready_worker_says_what_engine_it_has(desk):
    made = desk(notice="abstract")
    info = made.until(EngineReady).info
    expected = {"profile": "scripted", "device": "here", "notice": "abstract"}
    assert info == EngineInfo(**expected, details={"pid": str(made.process.pid)})


def test_messages_that_come_while_the_engine_is_loaded_are_done_afterwards(desk):
    made = desk(slow_to_load=True)
    made.prepare(job="a")
    made.pipe.send(Admit("a"))
    made.prepare(job="b")
    made.pipe.send(Cancel("b"))
    assert made.script.wait_for(lambda: made.script.pids)
    made.script.let_load()
    assert isinstance(made.next(), EngineReady)
    assert isinstance(made.end_of("a"), Finished)
    assert made.said("b") == []


def test_an_engine_that_cannot_be_set_up_is_reported_as_it_is(desk):
    made = desk(load_error=DeviceUnavailable("There is no such card."))
    error = made.until(EngineFailedToLoad).error
    assert (type(error), str(error)) == (DeviceUnavailable, "There is no such card.")
    assert made.exit_code() == EXIT_NO_ENGINE


def test_any_other_error_of_loading_is_a_fault_that_another_start_may_cure(desk):
    made = desk(load_error=RuntimeError("driver"))
    assert "could not be created: RuntimeError('driver')" in made.until(DeviceFault).reason
    assert made.exit_code() == EXIT_FAULT


def test_stopping_ends_after_the_current_step_and_closes_the_engine(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a", num_steps=20)
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")
    made.pipe.send(Stop())
    made.prepare(job="b")
    made.until(Prepared, "b")  # the stop was read before it
    made.script.run_steps(3)
    assert made.exit_code() == EXIT_STOPPED
    assert made.script.steps == {"a": 1}
    assert made.script.closed


def test_stopping_saves_the_pictures_that_are_done(desk):
    made = desk(gated=True).ready()
    made.prepare(job="a", num_steps=1, width=1024, height=1024)
    made.pipe.send(Admit("a"))
    made.until(Stepping, "a")
    made.pipe.send(Stop())
    made.prepare(job="b")
    made.until(Prepared, "b")
    made.script.open_gate()
    assert made.exit_code() == EXIT_STOPPED
    assert made.said("a")[-1] is Finished
    assert len(made.stored("a")) == 1


def test_stopping_does_not_wait_for_an_engine_that_is_being_loaded(desk):
    made = desk(slow_to_load=True)
    assert made.script.wait_for(lambda: made.script.pids)
    made.pipe.send(Stop())
    assert made.exit_code() == EXIT_STOPPED


@pytest.mark.parametrize("doing", ["loading", "idle", "stepping"])
def test_a_worker_dies_with_its_server_at_once_whatever_it_does(desk, doing):
    made = desk(slow_to_load=doing == "loading")
    if doing == "loading":
        assert made.script.wait_for(lambda: made.script.pids)
    else:
        made.ready()
    if doing == "stepping":
        made.prepare("stall at step 1")
        made.pipe.send(Admit("a"))
        made.until(Stepping)
    made.pipe.close()
    made.process.join(PATIENCE_S)
    assert made.process.exitcode == EXIT_ORPHANED


def test_ctrl_c_in_the_terminal_does_not_reach_a_worker_and_sigterm_does(desk):
    made = desk().ready()
    os.kill(made.process.pid, signal.SIGINT)
    assert isinstance(made.run(), Finished)
    made.process.terminate()
    assert made.exit_code() == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_around_a_scripted_engine_does_without_torch(shared):
    assert isinstance(shared.run(), Finished)
    mapped = Path(f"/proc/{shared.process.pid}/maps").read_text()
    assert "numpy" in mapped
    assert "libtorch" not in mapped
