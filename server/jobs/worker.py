"""The worker process: one engine on one device, which does what the server says and says what it does.

Four threads, so that none waits for the work of another:

    reader    takes messages from the pipe; when the pipe ends, so has the server, and we do
    prepare   reads photos and prompt of the next job, beside the steps of the current one; and answers
              questions about photos, which belong to no job
    main      admits, steps, reports; cancels act between two steps
    save      decodes and encodes the pictures of the last job and writes them, beside the next one's
              steps; and measures, where asked, how much they look like the photo

An error of a job, expected or not, ends that job only. A fault of the device ends the process: the
pool starts a new one. Knows no HTTP, no queue and no records of jobs.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NoReturn

from pulid.engine import (
    DenoisedRequest,
    Engine,
    GenerationResult,
    LoadProgress,
    PhotoFile,
    PreparedRequest,
    RgbImage,
    StepEvent,
)
from pulid.errors import DeviceLost, EngineFailed, OutOfMemory, PulidError, SetupError, about_photo
from server.jobs.files import MediaStore, encode_images
from server.jobs.job import Similarities
from server.jobs.messages import (
    Admit,
    AskFaces,
    AskFailed,
    AskIdentity,
    Cancel,
    DeviceFault,
    EngineFailedToLoad,
    EngineReady,
    FacesFound,
    Finished,
    IdentityMade,
    JobFailed,
    Loading,
    Prepare,
    Prepared,
    Preparing,
    Question,
    Stepped,
    Stepping,
    Stop,
    ToWorker,
    Watch,
    WorkerEvent,
)
from server.loading import CreateEngine, LoadingReport, log_loading
from server.logs import configure_logs, get_logger, trace_of

if TYPE_CHECKING:
    from server.settings import LogFormat, LogLevel

log = get_logger("worker")

EXIT_STOPPED = 0
EXIT_FAULT = 70  # EX_SOFTWARE: the device or the loop itself is broken
EXIT_NO_ENGINE = 78  # EX_CONFIG: it would not load the next time either
EXIT_OUT_OF_MEMORY = 71  # EX_OSERR: what fills the device goes with this process
EXIT_ORPHANED = 75  # EX_TEMPFAIL: the server is gone

TELL_LOADING_S = 0.25  # how often the server hears of it

MAX_UNSAVED = 4  # jobs whose steps are done and whose pictures are not on disk; then none is admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker process is given at its start; travels by pickle."""

    device: str
    create_engine: CreateEngine
    decode_photo: Callable[[bytes], RgbImage]  # raises ImageRejected
    media: MediaStore
    log_level: LogLevel = "info"
    log_format: LogFormat | None = None


def run_worker(connection: Connection, setup: WorkerSetup) -> NoReturn:
    """The main function of the process. Ends it with one of the exit codes above."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    configure_logs(level=setup.log_level, form=setup.log_format)
    exit_code = EXIT_FAULT
    try:
        exit_code = Worker(connection, setup).run()
    except BaseException as exc:  # nothing is above this frame
        log.error("worker fault", device=setup.device, **trace_of(exc))
    finally:
        # The other threads may be inside the engine, where the end of the interpreter can crash them.
        os._exit(exit_code)


@dataclass(slots=True, eq=False)
class _Job:
    """One attempt at a job: the same id may come again after a cancel."""

    order: Prepare
    prepared: PreparedRequest | None = None
    is_watched: bool = False  # somebody looks at its previews
    has_begun: bool = False  # its first step
    has_failed: bool = False
    is_cancelled: bool = False

    @property
    def id(self) -> str:
        return self.order.job_id


class Worker:
    def __init__(self, connection: Connection, setup: WorkerSetup) -> None:
        self._connection = connection
        self._setup = setup
        self._media = setup.media
        self._log = log.bind(device=setup.device)
        self._sending = threading.Lock()
        self._is_loaded = False
        # What other threads leave for the main one to do between two steps.
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._to_prepare: queue.SimpleQueue[_Job | Question] = queue.SimpleQueue()
        self._to_save: queue.SimpleQueue[tuple[_Job, DenoisedRequest]] = queue.SimpleQueue()
        self._jobs: dict[str, _Job] = {}  # those that have not ended, of any thread
        self._jobs_lock = threading.Lock()
        # Of the main thread alone:
        self._admitted: deque[_Job] = deque()  # by the server; not yet in the engine
        self._in_flight: dict[str, _Job] = {}
        self._unsaved = 0
        self._out_of_memory = ""  # the job, if the last one was out of memory
        self._exit_code: int | None = None

    def run(self) -> int:
        """Load the engine and work until there is a reason to end. Returns the exit code."""
        self._start_thread(self._read_messages)
        try:
            engine = self._setup.create_engine(self._setup.device, progress=self._hear_loading())
        except SetupError as exc:
            self._send(EngineFailedToLoad(exc))
            return EXIT_NO_ENGINE
        except Exception as exc:
            self._log.error("engine creation failed", **trace_of(exc))
            self._send(DeviceFault(f"The engine could not be created: {exc!r}."))
            return EXIT_FAULT
        return self._work(engine)

    def _hear_loading(self) -> Callable[[str, LoadProgress], None]:
        """What tells of the loading, to the log now and then, and to the server more often."""
        reports = (
            LoadingReport(log_loading),
            LoadingReport(
                lambda device, part, percent: self._send(Loading(part, percent)), every_s=TELL_LOADING_S
            ),
        )

        def hear(device: str, progress: LoadProgress) -> None:
            for report in reports:
                report(device, progress)

        return hear

    def _work(self, engine: Engine) -> int:
        self._engine = engine
        self._is_loaded = True
        self._send(EngineReady(engine.info))
        self._start_thread(self._prepare_jobs)
        self._start_thread(self._save_jobs)
        while self._exit_code is None:
            self._do_notes()
            self._admit_next()
            self._step()
        while self._unsaved:
            self._notes.get()()
        if self._exit_code == EXIT_STOPPED:
            engine.close()
        return self._exit_code

    # main thread: notes, admission, steps

    def _do_notes(self) -> None:
        """Do what the other threads left; with nothing to step or admit, sleep until they leave more."""
        while self._exit_code is None and not (self._has_work and self._notes.empty()):
            self._notes.get()()

    @property
    def _has_work(self) -> bool:
        return bool(self._in_flight) or self._next_to_admit() is not None

    def _next_to_admit(self) -> _Job | None:
        if self._unsaved >= MAX_UNSAVED:
            return None
        return next((job for job in self._admitted if job.prepared is not None), None)

    def _admit_next(self) -> None:
        job = self._next_to_admit()
        if job is None or job.prepared is None or self._exit_code is not None:
            return
        # An engine with nothing in flight is always asked: what it raises then is the answer.
        if self._in_flight and not self._engine.can_admit(job.order.request):
            return
        self._admitted.remove(job)
        prepared, job.prepared = job.prepared, None
        try:
            self._engine.admit(job.id, prepared)
            self._in_flight[job.id] = job
            if job.is_watched:
                self._engine.watch(job.id, True)
        except Exception as exc:
            self._fail(job, exc)

    def _step(self) -> None:
        if not self._in_flight or self._exit_code is not None:
            return
        for job in self._in_flight.values():
            if not job.has_begun:
                job.has_begun = True
                self._send(Stepping(job.id))
        try:
            events = self._engine.step()
        except Exception as exc:
            # Nobody knows whose fault it was: all that were in this step end, the next ones run.
            for job in list(self._in_flight.values()):
                self._leave_engine(job)
                self._fail(job, exc)
            return
        for event in events:
            self._report(event, jobs=len(events))

    def _report(self, event: StepEvent, *, jobs: int) -> None:
        job = self._in_flight[event.job_id]
        if event.is_last:
            del self._in_flight[event.job_id]
        if event.error is not None:
            self._fail(job, event.error)
            return
        self._send(Stepped(job.id, event.step, event.num_steps, jobs, event.preview))
        if event.denoised is not None:
            self._unsaved += 1
            self._to_save.put((job, event.denoised))

    def _leave_engine(self, job: _Job) -> None:
        if self._in_flight.get(job.id) is job:
            del self._in_flight[job.id]
            self._engine.cancel(job.id)

    def _note_admitted(self, job: _Job) -> None:
        if not (job.is_cancelled or job.has_failed):
            self._admitted.append(job)

    def _note_prepared(self, job: _Job, prepared: PreparedRequest) -> None:
        job.prepared = prepared

    def _note_watched(self, job: _Job, on: bool) -> None:
        job.is_watched = on
        if self._in_flight.get(job.id) is job:  # else at its admission
            self._engine.watch(job.id, on)

    def _note_cancelled(self, job: _Job) -> None:
        self._leave_engine(job)
        if job in self._admitted:
            self._admitted.remove(job)

    def _note_failed(self, job: _Job) -> None:
        job.has_failed = True
        if job in self._admitted:
            self._admitted.remove(job)

    def _note_decoded(self) -> None:
        self._out_of_memory = ""

    def _note_saved(self) -> None:
        self._unsaved -= 1

    def _note_out_of_memory(self, job_id: str) -> None:
        """One job may be too large, however often it is tried. After two in a row we suspect ourselves."""
        if self._out_of_memory not in ("", job_id):
            self._send(DeviceFault("The device ran out of memory for several requests in a row."))
            self._exit_code = EXIT_OUT_OF_MEMORY
        self._out_of_memory = job_id

    def _note_device_fault(self, reason: str) -> None:
        self._send(DeviceFault(reason))
        self._exit_code = EXIT_FAULT

    def _note_stop(self) -> None:
        self._exit_code = EXIT_STOPPED

    # reader thread

    def _read_messages(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(EXIT_ORPHANED)
            self._take(message)
            del message  # it may hold a photo, and the next one may be long in coming

    def _take(self, message: ToWorker) -> None:
        match message:
            case Prepare(job_id=job_id):
                job = _Job(message)
                with self._jobs_lock:
                    self._jobs[job_id] = job
                self._to_prepare.put(job)
                if message.is_admitted:
                    self._notes.put(partial(self._note_admitted, job))
            case Admit(job_id):
                if (known := self._jobs.get(job_id)) is not None:
                    self._notes.put(partial(self._note_admitted, known))
            case Watch(job_id, on):
                if (known := self._jobs.get(job_id)) is not None:
                    self._notes.put(partial(self._note_watched, known, on))
            case Cancel(job_id):
                with self._jobs_lock:
                    cancelled = self._jobs.pop(job_id, None)
                if cancelled is not None:
                    cancelled.is_cancelled = True
                    self._notes.put(partial(self._note_cancelled, cancelled))
            case AskFaces() | AskIdentity():
                self._to_prepare.put(message)
            case Stop():
                if not self._is_loaded:  # loading takes minutes, and there is nothing to lose
                    os._exit(EXIT_STOPPED)
                self._notes.put(self._note_stop)

    # prepare thread

    def _prepare_jobs(self) -> None:
        while True:
            self._prepare_next(self._to_prepare.get())

    def _prepare_next(self, what: _Job | Question) -> None:
        if not isinstance(what, _Job):
            self._answer(what)
        elif not what.is_cancelled:
            self._prepare(what)

    def _prepare(self, job: _Job) -> None:
        self._send(Preparing(job.id))
        try:
            photos = tuple(self._read_photos(job.order))
            prepared = self._engine.prepare(replace(job.order.request, id_images=photos))
        except Exception as exc:
            if self._exit_code is None:  # else the engine may have been closed under it: not the job's fault
                self._fail(job, exc)
            return
        if not job.is_cancelled:
            self._send(Prepared(job.id, prepared.timings, prepared.cache_hits))
            self._notes.put(partial(self._note_prepared, job, prepared))

    def _read_photos(self, order: Prepare) -> Iterator[PhotoFile]:
        for number, path in enumerate(order.photos):
            yield PhotoFile(path.read_bytes(), partial(self._decode, order.job_id, number))

    def _decode(self, job_id: str, number: int, file: bytes) -> RgbImage:
        """One after the other, with a word between them: large ones take seconds each."""
        if number:
            self._send(Preparing(job_id))
        return self._setup.decode_photo(file)

    def _answer(self, question: Question) -> None:
        try:
            if isinstance(question, AskFaces):
                answer: FacesFound | IdentityMade = self._faces_of(question)
            else:
                answer = self._identity_of(question)
        except Exception as exc:
            if self._exit_code is None:  # as in `_prepare`; the end of the process is an answer, too
                self._fail_question(question, exc)
            return
        self._send(answer)

    def _faces_of(self, question: AskFaces) -> FacesFound:
        photo = self._setup.decode_photo(question.photo)
        height, width = photo.shape[:2]
        faces = self._engine.faces(photo)
        return FacesFound(question_id=question.question_id, faces=faces, width=width, height=height)

    def _identity_of(self, question: AskIdentity) -> IdentityMade:
        photos = []
        for number, file in enumerate(question.photos):
            with about_photo(number):
                photos.append(self._setup.decode_photo(file))
        return IdentityMade(question.question_id, self._engine.embed(photos, question.fusion, question.face))

    def _fail_question(self, question: Question, exc: Exception) -> None:
        if isinstance(exc, DeviceLost):
            self._log.error("device lost", **trace_of(exc))
            self._notes.put(partial(self._note_device_fault, str(exc)))
            return
        if not isinstance(exc, PulidError):
            self._log.error("engine fault", **trace_of(exc))
            exc = EngineFailed("The photo could not be looked at: an internal fault. Trying again may help.")
        self._send(AskFailed(question.question_id, exc))

    # save thread

    def _save_jobs(self) -> None:
        while True:
            self._save(*self._to_save.get())
            self._notes.put(self._note_saved)

    def _save(self, job: _Job, denoised: DenoisedRequest) -> None:
        if job.is_cancelled:
            return
        try:
            result = self._engine.decode(denoised)
            self._notes.put(self._note_decoded)
            started = time.perf_counter()
            files = self._media.save(job.order.media_id, encode_images(result.images, job.order.output))
        except Exception as exc:
            self._fail(job, exc)
            return
        timings = {**result.timings, "encode": time.perf_counter() - started}
        similarities = self._similarities(job, result) if job.order.request.measures_similarity else ()
        self._forget(job)
        self._send(
            Finished(
                job.id,
                job.order.media_id,
                files,
                timings,
                result.device_memory,
                similarities,
                result.skipped_steps,
            )
        )

    def _similarities(self, job: _Job, result: GenerationResult) -> Similarities:
        """Of each picture. The pictures are on disk: whatever happens here, their job has not failed."""
        try:
            return tuple(self._engine.likeness(image, result.reference_faces) for image in result.images)
        except Exception as exc:
            self._log.error("likeness not measured", job_id=job.id, **trace_of(exc))
            if isinstance(exc, DeviceLost):
                self._notes.put(partial(self._note_device_fault, str(exc)))
            return tuple((None,) * len(result.reference_faces) for _ in result.images)

    # any thread

    def _fail(self, job: _Job, exc: Exception) -> None:
        """End a job; what the error says about the device is a note for the main thread."""
        if isinstance(exc, DeviceLost):  # not the job's end: it is tried again on a sound device
            self._log.error("device lost", job_id=job.id, **trace_of(exc))
            self._notes.put(partial(self._note_device_fault, str(exc)))
            return
        if not isinstance(exc, PulidError):
            self._log.error("engine fault", job_id=job.id, **trace_of(exc))
            exc = EngineFailed("The picture could not be made: an internal fault. Trying again may help.")
        self._forget(job)
        self._notes.put(partial(self._note_failed, job))
        if not job.is_cancelled:
            self._send(JobFailed(job.id, exc))
        if isinstance(exc, OutOfMemory):
            self._notes.put(partial(self._note_out_of_memory, job.id))

    def _forget(self, job: _Job) -> None:
        with self._jobs_lock:
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]

    def _send(self, event: WorkerEvent) -> None:
        try:
            with self._sending:
                self._connection.send(event)
        except OSError:
            os._exit(EXIT_ORPHANED)

    def _start_thread(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as exc:
                self._log.error("worker thread ended", thread=work.__name__, **trace_of(exc))
            finally:
                os._exit(EXIT_FAULT)  # a worker with a thread less would wait for ever

        threading.Thread(target=run, name=work.__name__, daemon=True).start()
