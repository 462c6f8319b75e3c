"""JobRunner: takes accepted jobs to their end, whatever happens to workers, disks and callers.

Holds every job that has not ended. Sends for photos, listens to the workers, tries again what may go
better the next time, charges a worker's death to the job it was busy with, and writes the end of a
job exactly once, in `end`. Lives on the event loop. Does not know who asks (`service.py`), which
job is next (`scheduler.py`), or how a picture is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pulid.engine import EngineInfo, RgbImage
from pulid.errors import EngineFailed, PulidError
from server.jobs.device_states import DeviceStates
from server.jobs.dispatcher import Dispatcher
from server.jobs.ends import MAX_TRIES, about, end_trace, ended_record, hopeless
from server.jobs.face_stage import FaceStage
from server.jobs.job import (
    GoingDown,
    JobFile,
    JobInterrupted,
    JobRecord,
    JobState,
    JobTimedOut,
    LeaseLost,
    NotReady,
    Similarities,
    StoreFailed,
)
from server.jobs.leases import JobLeases
from server.jobs.live import JobView, LiveJob, ParsedBody
from server.jobs.messages import (
    AskFailed,
    DeviceFault,
    EngineReady,
    FacesFound,
    Finished,
    IdentityMade,
    JobFailed,
    OutOfService,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
    ToWorker,
    WorkerDied,
    WorkerEvent,
)
from server.jobs.photos import JobPhotos, ParseBody, need_no_fetch
from server.jobs.progress import Progress
from server.jobs.questions import PhotoQuestions
from server.jobs.scheduler import Scheduler
from server.jobs.storage import TRY_AGAIN_S, JobStorage
from server.jobs.worker_pool import WorkerPool
from server.loading import CreateEngine
from server.logs import get_logger, trace_of
from server.metrics import JobMetrics
from server.settings import LogFormat, LogLevel

log = get_logger("jobs")

SWEEP_EVERY_S = 30.0
PROBE_EVERY_S = 3.0  # of a data folder that did not take the last write

_STOPPED = "The server stopped before this picture was done. Send the request again."
_ENGINE_DIED = "The engine stopped while it looked at the photo. Try again in a few seconds."

JobEvent = Finished | JobFailed | Preparing | Prepared | Stepping | Stepped

# What another attempt may cure: full devices and disks, and faults nobody understands.
_WORTH_A_RETRY = frozenset({"out_of_memory", "storage_full", "storage_failed", "engine_failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    max_queued: int = 64
    job_deadline_s: float = 600.0
    result_ttl_s: float = 3600.0
    media_ttl_s: float = 604_800.0
    v2_strict: bool = False
    stall_floor_s: float = 60.0  # no word from a busy worker for this long: it is killed
    stop_timeout_s: float = 10.0  # for the steps that are running when the server ends
    log_level: LogLevel = "info"  # of the worker processes
    log_format: LogFormat | None = None


class Pool(Protocol):
    """What does the work; `WorkerPool` here, engines elsewhere in `remote_engines.py`."""

    looks_ahead: bool  # a busy device prepares its next job beside the steps of the current one

    async def start(self) -> None: ...
    def send(self, device: str, message: ToWorker) -> None: ...
    def start_no_more(self) -> None: ...
    async def stop(self, timeout_s: float) -> None: ...


class MakePool(Protocol):
    def __call__(self, *, devices: tuple[str, ...], on_event: Callable[[str, WorkerEvent], None]) -> Pool: ...


class JobRunner:
    def __init__(
        self,
        *,
        storage: JobStorage,
        devices: tuple[str, ...],
        create_engine: CreateEngine,
        decode_photo: Callable[[bytes], RgbImage],
        parse: ParseBody,
        face_stage: FaceStage,
        limits: JobLimits,
        metrics: JobMetrics,
        on_ready: Callable[[EngineInfo], None],
        on_lost: Callable[[PulidError], None],
        make_pool: MakePool | None = None,
    ) -> None:
        self.live: dict[str, LiveJob] = {}
        self.info: EngineInfo | None = None
        self.fault: PulidError | None = None  # no engine will work any more
        self._storage = storage
        self._photos = JobPhotos(storage=storage, face_stage=face_stage, parse=parse, metrics=metrics)
        self._limits = limits
        self._metrics = metrics
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._devices = DeviceStates(devices, metrics)
        self._unfinished_of: defaultdict[str, int] = defaultdict(int)  # by key
        self._is_draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduler = Scheduler(limits.max_queued)
        make_pool = make_pool or partial(
            WorkerPool,
            create_engine=create_engine,
            decode_photo=decode_photo,
            media=storage.media,
            stall_floor_s=limits.stall_floor_s,
            log_level=limits.log_level,
            log_format=limits.log_format,
        )
        self._pool = make_pool(devices=devices, on_event=self._on_event)
        self._dispatcher = Dispatcher(
            devices=devices,
            scheduler=self._scheduler,
            live=self.live,
            send=self._pool.send,
            photo_paths=storage.photo_paths,
            now=time.time,
            looks_ahead=self._pool.looks_ahead,
        )
        self._leases: JobLeases | None = None  # where several servers share the jobs
        self.questions = PhotoQuestions(
            face_stage=face_stage, device=self._dispatcher.device_for_question, send=self._pool.send
        )

    # life

    async def start(self) -> None:
        """Take up what a dead server left, and begin to load the engines."""
        self._loop = asyncio.get_running_loop()
        for record in await self._storage.unfinished():
            await self._resume(record)
        await self._storage.clear_orphans(
            jobs=set(self.live), media={job.record.media_id for job in self.live.values()}
        )
        await self._pool.start()
        self._spawn(self._sweep_for_ever())
        self._spawn(self._probe_for_ever())
        if (shared := self._storage.shared) is not None:
            leases = self._new_leases()
            self._spawn(leases.keep())
            notices = shared.notices(self._storage.server_id)
            self._spawn(notices.listen_for_ever(leases.hear, leases.hear_steps))
            self._leases = leases

    def _new_leases(self) -> JobLeases:
        return JobLeases(
            storage=self._storage,
            live=self.live,
            metrics=self._metrics,
            room=self._room,
            take_up=self._take_up,
            lose=self.lose,
            on_usurped=self._on_usurped,
        )

    def drain(self) -> None:
        """Start nothing more. v1 callers that wait for a turn hear it now; v2 jobs stay on disk."""
        self._is_draining = True
        self._dispatcher.pause()
        self._pool.start_no_more()
        self._refuse_waiting_calls()
        self._give_back(but=self._dispatcher.painting)

    async def drained(self) -> None:
        """Return when nothing runs."""
        while painting := self._dispatcher.painting:
            await painting[0].changed.wait()

    def interrupt(self) -> None:
        """Every v1 caller that still waits hears that it waits in vain."""
        self._end_calls(JobInterrupted(_STOPPED))
        self.questions.end_all(GoingDown())

    async def close(self) -> None:
        """End now, also in the middle of a step."""
        await self._pool.stop(self._limits.stop_timeout_s)
        self.interrupt()
        for job in [job for job in self.live.values() if job.ending]:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.ended.wait(), self._limits.stop_timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._storage.leave()
        for job in self.live.values():  # the next server goes on with them
            end_trace(job)

    # what the service asks

    @property
    def has_worker(self) -> bool:
        return self._dispatcher.any_ready

    @property
    def workers(self) -> Mapping[str, bool]:
        return self._dispatcher.ready

    @property
    def devices(self) -> DeviceStates:
        return self._devices

    def unfinished_of(self, key: str) -> int:
        return self._unfinished_of[key]

    def view_of(self, job: LiveJob, *, previews: bool = False) -> JobView:
        position = self._dispatcher.position(job) if job.record.state is JobState.QUEUED else None
        return JobView(
            record=job.record,
            step=job.step,
            seconds_left=job.seconds_left,
            preview=job.preview if previews else None,
            queue_position=position,
        )

    @contextmanager
    def watching(self, job: LiveJob) -> Iterator[None]:
        """While somebody looks at its previews they are made, in whichever attempt."""
        job.watchers += 1
        if job.watchers == 1:
            self._dispatcher.watched(job)
        try:
            yield
        finally:
            job.watchers -= 1
            if not job.watchers:
                job.preview = None
                self._dispatcher.watched(job)

    def adopt(self, record: JobRecord, parsed: ParsedBody, *, front: bool = False) -> LiveJob:
        """A place in the queue. Raises Busy when there is none."""
        request = replace(parsed.request, seed=record.seed or 0)
        job = LiveJob(
            record,
            request,
            parsed.output,
            photos=len(parsed.photos),
            places=parsed.places,
            alone=record.deaths > 0,
        )
        self._dispatcher.enqueue(job, front=front)
        self.live[job.id] = job
        self._unfinished_of[record.key] += 1
        self._count()
        return job

    def drop(self, job: LiveJob) -> None:
        """Take an adopted job back without a word: it never came to be."""
        if job.lost:
            return
        if job.end_task is not None:  # a drain was faster, or its worker; its end waits for a row
            job.end_task.cancel()
            self._spawn(self._storage.delete_media(job.record.media_id))
        job.ending = True
        if job.timer:
            job.timer.cancel()
        if job.photos_task is not None:
            job.photos_task.cancel()
        del self.live[job.id]
        self._unfinished_of[job.record.key] -= 1
        self._dispatcher.forget(job)
        self._spawn(self._storage.delete_body(job.id))  # photos that were faster than the refusal
        job.touch()
        self._count()

    def begin(self, job: LiveJob, parsed: ParsedBody) -> None:
        """The job is on disk: let it have a turn once its photos are, too, unless it has begun early."""
        job.stored.set()
        if not job.begun.is_set():
            self._begin(job, parsed)

    async def begin_early(self, job: LiveJob, parsed: ParsedBody) -> None:
        """Let a job have a turn before its row is written; its end waits for that row.

        Returns when photos that came with the request are on disk: the row, written beside them, would
        only keep them from the worker.
        """
        self._begin(job, parsed)
        if job.photos_task is not None and need_no_fetch(parsed):
            await asyncio.wait({job.photos_task})

    def _begin(self, job: LiveJob, parsed: ParsedBody) -> None:
        if job.ending:  # a drain was faster
            return
        left = max(0.0, job.record.deadline_at - time.time())
        job.timer = self._loop.call_later(left, self._expire, job)
        job.begun.set()
        if job.photos_task is None:
            self.bring_photos(job, parsed)

    def end(
        self,
        job: LiveJob,
        *,
        files: tuple[JobFile, ...] = (),
        similarities: Similarities = (),
        error: PulidError | None = None,
    ) -> None:
        """End a job, once; whoever comes later is ignored. Its waiters wake when the end is on disk."""
        if job.ending:
            return
        job.ending = True
        if job.timer:
            job.timer.cancel()
        if job.photos_task and job.photos_task is not asyncio.current_task():
            job.photos_task.cancel()
        self._dispatcher.forget(job, is_painted=error is None)
        ended = ended_record(job.record, files=files, similarities=similarities, error=error)
        job.end_task = self._spawn(self._write_end(job, ended))

    def lose(self, job: LiveJob) -> None:
        """Another server has it: forget it and what was made of it. Its waiters wake, and ask the store."""
        if not job.lost:
            self._metrics.lease_lost()
            self._let_go(job)

    def _let_go(self, job: LiveJob) -> None:
        if job.lost:
            return
        job.lost = job.ending = True
        if job.timer:
            job.timer.cancel()
        if job.photos_task:
            job.photos_task.cancel()
        self._dispatcher.forget(job)
        if self.live.get(job.id) is job:
            del self.live[job.id]
        self._unfinished_of[job.record.key] -= 1
        self._spawn(self._storage.forget(job.record))
        end_trace(job)
        job.ended.set()
        job.touch()
        self._count()
        log.info("job left to other servers", job_id=job.id)

    def changed_elsewhere(self, job_id: str) -> asyncio.Event | None:
        """Set when another server changes the job; None where there is no other."""
        return None if self._leases is None else self._leases.changed(job_id)

    def progress_elsewhere(self, job_id: str) -> Progress | None:
        """What another server has told of its job."""
        return None if self._leases is None else self._leases.progress.of(job_id)

    def _give_back(self, *, but: Collection[LiveJob] = ()) -> None:
        """Let other servers have the v2 jobs, where there are any."""
        if self._leases is not None:
            jobs = [
                job
                for job in self.live.values()
                if job.record.api == "v2" and job.stored.is_set() and not job.ending and job not in but
            ]
            self._spawn(self._storage.give_back([job.id for job in jobs]))
            for job in jobs:
                self._let_go(job)

    def _room(self) -> int | None:
        """How many more jobs the devices could hold now; None where none would be done."""
        is_closed = self._is_draining or self.fault is not None or self._storage.is_low
        if is_closed or not self._dispatcher.any_ready:
            return None
        places = 2 if self._pool.looks_ahead else 1
        return places * sum(self._dispatcher.ready.values()) - len(self.live)

    def _on_usurped(self, error: PulidError) -> None:
        for job in list(self.live.values()):
            self.lose(job)
        self._lose_engines(error)

    def _end_calls(self, error: PulidError, *, but: Collection[LiveJob] = ()) -> None:
        """End the job of every v1 call."""
        for job in list(self.live.values()):
            if job.record.api == "v1" and job not in but:
                self.end(job, error=error)

    def _refuse_waiting_calls(self) -> None:
        self._end_calls(GoingDown(), but=self._dispatcher.painting)

    # photos

    def _expire(self, job: LiveJob) -> None:
        seconds = job.record.deadline_at - job.record.submitted_at
        self.end(job, error=JobTimedOut(f"The picture was not ready within {seconds:.4g} seconds."))

    def bring_photos(self, job: LiveJob, parsed: ParsedBody) -> None:
        """Begin to bring its photos to the disk. It has a turn when they are there and `begin` was called."""
        job.photos_task = self._spawn(self._bring_photos(job, parsed))

    async def _bring_photos(self, job: LiveJob, parsed: ParsedBody) -> None:
        error: PulidError | None = None
        bringing = self._photos.bring(job, parsed)
        del parsed  # megabytes, which it lets go of when it has to wait
        try:
            await bringing
        except PulidError as exc:
            error = exc
        except Exception as exc:
            log.error("job fault", job_id=job.id, **trace_of(exc))
            error = EngineFailed("The picture could not be made: an internal fault.")
        await job.begun.wait()
        if error is None:
            self._make_ready(job)
        else:
            self.end(job, error=error)

    def _make_ready(self, job: LiveJob) -> None:
        if not job.ending:
            self._dispatcher.make_ready(job)

    # what workers say

    def _on_event(self, device: str, event: WorkerEvent) -> None:
        self._devices.heard(device, event, time.monotonic())
        match event:
            case EngineReady(info):
                self.info = info
                log.info("engine ready", device=device, profile=info.profile, **info.details)
                self._dispatcher.device_ready(device)
                self._on_ready(info)
            case OutOfService(error):
                log.error("device out of service", device=device, code=error.code, reason=str(error))
                if not self._devices.is_any_left:
                    self._lose_engines(error)
            case DeviceFault(reason):
                log.error("device fault", device=device, reason=reason)
            case WorkerDied():
                self.questions.device_lost(device, NotReady(_ENGINE_DIED))
                self._on_death(device, event)
            case FacesFound() | IdentityMade() | AskFailed():
                self.questions.answered(event)
            case Finished() | JobFailed() | Preparing() | Prepared() | Stepping() | Stepped():
                job = self.live.get(event.job_id)
                is_late = job is not None and not self._is_of(device, event, job)
                if job is not None and not job.ending and not is_late:
                    self._on_job_event(device, job, event)
                elif isinstance(event, Finished):
                    self._spawn(self._delete_unwanted(event))

    def _is_of(self, device: str, event: JobEvent, job: LiveJob) -> bool:
        """Not of an attempt before another device, or another server, had it."""
        is_another_servers = isinstance(event, Finished) and event.media_id != job.record.media_id
        return self._dispatcher.has(device, job) and not is_another_servers

    def _on_job_event(
        self,
        device: str,
        job: LiveJob,
        event: JobEvent,
    ) -> None:
        if job.trace is not None:
            job.trace.heard(event)
        match event:
            case Prepared(_, timings, cache_hits):
                self._measure(timings, "decode_photo", "face", "text")
                for cache, hit in cache_hits.items():
                    self._metrics.cache_lookup(cache, hit=hit)
            case Preparing():
                self._count()
            case Stepping():
                self._on_beginning(job)
            case Stepped(_, step, num_steps, jobs, preview):
                self._metrics.batch(jobs)
                job.stepped(step, num_steps, preview, now=time.monotonic())
                if step == num_steps:
                    self._dispatcher.denoised(job)
            case Finished(_, _, files, timings, device_memory, similarities, _):
                self._measure(timings, "denoise", "decode", "encode")
                if device_memory is not None:
                    self._metrics.device_memory(device, device_memory)
                self.end(job, files=files, similarities=similarities)
            case JobFailed(_, error):
                self._on_failure(job, error)
        job.touch()

    def _measure(self, timings: Any, *stages: str) -> None:
        for stage in stages:
            if stage in timings:
                self._metrics.stage(stage, timings[stage])

    def _on_beginning(self, job: LiveJob) -> None:
        """The first step begins: from here on the attempt counts."""
        now = time.time()
        record = job.record
        job.record = replace(record, state=JobState.PROCESSING, started_at=now, tries=record.tries + 1)
        self._metrics.started(now - record.submitted_at)
        self._count()
        if record.api == "v2":  # nobody resumes a v1 job, so its row need not know
            self._spawn(self._save_state(job, job.record))

    async def _save_state(self, job: LiveJob, record: JobRecord) -> None:
        try:
            await self._storage.try_save(record)
        except LeaseLost:
            self.lose(job)

    async def _delete_unwanted(self, late: Finished) -> None:
        """Pictures that came after their job had ended otherwise, and perhaps been deleted."""
        if job := self.live.get(late.job_id):
            await job.ended.wait()
        record = job.record if job else await self._storage.get(late.job_id)
        is_theirs = record is not None and record.media_id == late.media_id
        if record is None or not is_theirs or record.state is not JobState.COMPLETED:
            await self._storage.delete_media(late.media_id)

    # when something went wrong

    def _on_failure(self, job: LiveJob, error: PulidError) -> None:
        job.failures += 1
        may_retry = job.record.api == "v2" and error.code in _WORTH_A_RETRY
        if not may_retry or job.failures >= MAX_TRIES or job.record.tries >= MAX_TRIES:
            self.end(job, error=about(error, job.places))
            return
        if isinstance(error, StoreFailed):
            self._storage.pictures_failed()
        self._dispatcher.forget(job)
        self._requeue(job)
        self._spawn(self._retry_later(job))

    async def _retry_later(self, job: LiveJob) -> None:
        """A turn again once there may be room for its pictures; its deadline ends the wait."""
        await self._storage.room()
        self._make_ready(job)

    def _on_death(self, device: str, event: WorkerDied) -> None:
        """Charge the death to what the worker was doing, and queue everything it had again.

        During a drain nothing is charged: a signal to the whole process group ends the workers, too.
        """
        log.error("worker died", device=device, exit_code=event.exit_code)
        self._metrics.worker_died()
        suspects = set() if self._is_draining else {*event.running, event.preparing}
        for job in sorted(self._dispatcher.take_back(device), key=lambda job: -job.record.submitted_at):
            if job.ending:
                continue
            if job.id in suspects:
                job.record = replace(job.record, deaths=job.record.deaths + 1)
                job.alone = True
            if not self._is_draining and (error := hopeless(job.record)) is not None:
                self.end(job, error=error)
            else:
                self._requeue(job)
                self._make_ready(job)
        if self._is_draining:
            self._refuse_waiting_calls()

    def _requeue(self, job: LiveJob) -> None:
        if job.trace is not None:
            job.trace.requeued()
        job.back_to_queue()
        job.record = replace(job.record, state=JobState.QUEUED, started_at=None)
        self._dispatcher.enqueue(job, front=True)
        self._spawn(self._save_state(job, job.record))
        job.touch()
        self._count()

    def _lose_engines(self, error: PulidError) -> None:
        """No worker will come back: v2 jobs stay for the next server, v1 callers hear it now."""
        self.fault = error
        log.error("engine lost", code=error.code)
        self._end_calls(NotReady("The engine has stopped. Send the request again later."))
        self._give_back()
        self._on_lost(error)

    async def _take_up(self, record: JobRecord) -> None:
        """A job that was another server's. One whose time is over waited while nobody worked."""
        await self._resume(record, has_waited=record.deadline_at > time.time())
        self._count()

    async def _resume(self, record: JobRecord, *, has_waited: bool = False) -> None:
        """A job of a dead server. It gets a new deadline: the old one ran on while nobody worked.

        `has_waited` for its turn, at a server that lives: then it keeps the old one.
        """
        if record.api == "v1":
            error: PulidError | None = JobInterrupted(_STOPPED)
        else:
            error = hopeless(record)
        if error is None:
            try:
                parsed = await self._photos.read_body(record.id)
            except (OSError, PulidError) as exc:
                if (
                    self._storage.shared
                    and isinstance(exc, OSError)
                    and not isinstance(exc, FileNotFoundError)
                ):
                    raise LeaseLost from exc  # it can be read later, or by another server
                error = JobInterrupted("The request could not be read again after a restart.")
        if error is not None:
            await self._storage.save_end(ended_record(record, error=error), media_ttl_s=0)
            return
        deadline_at = record.deadline_at
        if not has_waited:
            deadline_at = max(deadline_at, time.time() + self._limits.job_deadline_s)
        record = replace(record, state=JobState.QUEUED, started_at=None, deadline_at=deadline_at)
        await self._storage.save(record)
        self.begin(self.adopt(record, parsed, front=True), parsed)

    # the end

    async def _write_end(self, job: LiveJob, record: JobRecord) -> None:
        await job.stored.wait()
        try:
            written = await self._is_written(record)
            while not written and self._leases is not None and record.api == "v2":
                await asyncio.sleep(TRY_AGAIN_S)  # another server may take it up: nobody hears an end before
                written = await self._is_written(record)
        except LeaseLost:
            self.lose(job)
            return
        if job.lost:
            return
        if written:
            del self.live[job.id]
        job.record = record
        end_trace(job)
        job.ended.set()
        job.touch()
        self._unfinished_of[record.key] -= 1
        self._log_end(record)
        if self._leases is not None:
            self._leases.wake()
        while not written:  # the end is kept in memory until the disk takes it
            await asyncio.sleep(TRY_AGAIN_S)
            with suppress(LeaseLost):  # the caller of v1 has had the answer
                written = await self._is_written(record)
                continue
            written = True
        self.live.pop(job.id, None)

    async def _is_written(self, record: JobRecord) -> bool:
        """False: the disk did not take it. What it will never take is logged, and not tried again."""
        try:
            await self._storage.save_end(record, media_ttl_s=self._limits.media_ttl_s)
        except StoreFailed:
            return False
        except LeaseLost:
            raise
        except Exception as exc:
            log.error("end of job not saved", job_id=record.id, **trace_of(exc))
        return True

    def _log_end(self, record: JobRecord) -> None:
        self._metrics.ended(record.state, record.error_code)
        self._count()
        log.info(
            "job ended",
            job_id=record.id,
            api=record.api,
            state=record.state,
            reason=record.error_code,
            queue_s=round(record.queue_s, 3),
            inference_s=round(record.inference_s, 3),
            tries=record.tries,
        )

    def _count(self) -> None:
        self._metrics.queued(len(self._scheduler))
        self._metrics.running(len(self._dispatcher.painting))

    # tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._storage.sweep(self._limits.result_ttl_s)
            except Exception as exc:
                log.error("sweep failed", **trace_of(exc))
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _probe_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await self._storage.probe()
