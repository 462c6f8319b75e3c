"""JobRunner: takes accepted jobs to their end, whatever happens to workers, disks and callers.

Holds every job that has not ended. Fetches photos, listens to the workers, tries again what may go
better the next time, charges a worker's death to the job it was busy with, and writes the end of a
job exactly once, in `end`. Lives on the event loop. Does not know who asks (`service.py`), which
job is next (`scheduler.py`), or how a picture is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from pulid.engine import Engine, EngineInfo, RgbImage
from pulid.errors import EngineFailed, PulidError
from server.jobs.dispatcher import Dispatcher
from server.jobs.face_stage import FaceStage, is_url
from server.jobs.job import (
    GoingDown,
    JobFile,
    JobInterrupted,
    JobRecord,
    JobState,
    JobTimedOut,
    NotReady,
    StoreFailed,
)
from server.jobs.live import JobView, LiveJob, ParsedBody
from server.jobs.messages import (
    AskFailed,
    DeviceFault,
    EngineFailedToLoad,
    EngineReady,
    FacesFound,
    Finished,
    JobFailed,
    PoolBroken,
    Prepared,
    Preparing,
    Stepped,
    Stepping,
    WorkerDied,
    WorkerEvent,
)
from server.jobs.questions import FaceQuestions
from server.jobs.scheduler import Scheduler
from server.jobs.storage import JobStorage
from server.jobs.worker_pool import WorkerPool
from server.logs import get_logger, trace_of
from server.metrics import JobMetrics
from server.settings import LogFormat, LogLevel

log = get_logger("jobs")

ParseBody = Callable[[bytes], ParsedBody]  # raises BadRequest

MAX_TRIES = 3  # beginnings of one v2 job
MAX_DEATHS = 2  # of workers over one job
FETCHES_AT_ONCE = 8  # of one key; a fetched photo is in memory until it is on disk
SWEEP_EVERY_S = 30.0
PROBE_EVERY_S = 3.0  # of a data folder that did not take the last write
TRY_AGAIN_S = 2.0  # until what found the disk or the device full is tried again

_STOPPED = "The server stopped before this picture was done. Send the request again."
_ENGINE_DIED = "The engine stopped while it looked at the photo. Try again in a few seconds."

# What another attempt may cure: full devices and disks, and faults nobody understands.
_WORTH_A_RETRY = frozenset({"out_of_memory", "storage_full", "engine_failed"})


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


class JobRunner:
    def __init__(
        self,
        *,
        storage: JobStorage,
        devices: tuple[str, ...],
        create_engine: Callable[[str], Engine],
        decode_photo: Callable[[bytes], RgbImage],
        parse: ParseBody,
        face_stage: FaceStage,
        limits: JobLimits,
        metrics: JobMetrics,
        on_ready: Callable[[EngineInfo], None],
        on_lost: Callable[[PulidError], None],
    ) -> None:
        self.live: dict[str, LiveJob] = {}
        self.info: EngineInfo | None = None
        self.fault: PulidError | None = None  # no engine will work any more
        self._storage = storage
        self._parse = parse
        self._face_stage = face_stage
        self._limits = limits
        self._metrics = metrics
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._unfinished_of: defaultdict[str, int] = defaultdict(int)  # by key
        self._fetch_slots = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(FETCHES_AT_ONCE))
        self._is_draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduler = Scheduler(limits.max_queued)
        self._pool = WorkerPool(
            devices=devices,
            create_engine=create_engine,
            decode_photo=decode_photo,
            media_folder=storage.media_folder,
            on_event=self._on_event,
            stall_floor_s=limits.stall_floor_s,
            log_level=limits.log_level,
            log_format=limits.log_format,
        )
        self._dispatcher = Dispatcher(
            devices=devices,
            scheduler=self._scheduler,
            live=self.live,
            send=self._pool.send,
            photo_path=storage.photo_path,
            now=time.time,
        )
        self.questions = FaceQuestions(
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

    def drain(self) -> None:
        """Start nothing more. v1 callers that wait for a turn hear it now; v2 jobs stay on disk."""
        self._is_draining = True
        self._dispatcher.pause()
        self._pool.start_no_more()
        self._refuse_waiting_calls()

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

    # what the service asks

    @property
    def has_worker(self) -> bool:
        return self._dispatcher.any_ready

    def unfinished_of(self, key: str) -> int:
        return self._unfinished_of[key]

    def view_of(self, job: LiveJob) -> JobView:
        position = self._dispatcher.position(job) if job.record.state is JobState.QUEUED else None
        return JobView(record=job.record, step=job.step, queue_position=position)

    def adopt(self, record: JobRecord, parsed: ParsedBody, *, front: bool = False) -> LiveJob:
        """A place in the queue. Raises Busy when there is none."""
        request = replace(parsed.request, seed=record.seed or 0)
        job = LiveJob(record, request, parsed.output, alone=record.deaths > 0)
        self._dispatcher.enqueue(job, front=front)
        self.live[job.id] = job
        self._unfinished_of[record.key] += 1
        self._count()
        return job

    def drop(self, job: LiveJob) -> None:
        """Take an adopted job back without a word: it never came to be."""
        if job.ending:  # a drain was faster
            return
        del self.live[job.id]
        self._unfinished_of[job.record.key] -= 1
        self._dispatcher.forget(job)
        self._count()

    def begin(self, job: LiveJob, photo: str) -> None:
        """The job is on disk: fetch its photo, and let it have a turn."""
        if job.ending:  # a drain was faster
            return
        left = max(0.0, job.record.deadline_at - time.time())
        job.timer = self._loop.call_later(left, self._expire, job)
        job.photo_task = self._spawn(self._bring_photo(job, photo))

    def end(self, job: LiveJob, *, files: tuple[JobFile, ...] = (), error: PulidError | None = None) -> None:
        """End a job, once; whoever comes later is ignored. Its waiters wake when the end is on disk."""
        if job.ending:
            return
        job.ending = True
        if job.timer:
            job.timer.cancel()
        if job.photo_task and job.photo_task is not asyncio.current_task():
            job.photo_task.cancel()
        self._dispatcher.forget(job, is_painted=error is None)
        self._spawn(self._write_end(job, ended_record(job.record, files=files, error=error)))

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

    async def _bring_photo(self, job: LiveJob, photo: str) -> None:
        """Photo to disk, then the job may have a turn; or its end, if that cannot be."""
        try:
            while not await self._store_photo(job, photo):
                photo = ""  # the body on disk has it
                photo = await self._photo_again(job)
            self._make_ready(job)
        except PulidError as exc:
            self.end(job, error=exc)
        except Exception as exc:
            log.error("job fault", job_id=job.id, **trace_of(exc))
            self.end(job, error=EngineFailed("The picture could not be made: an internal fault."))

    async def _store_photo(self, job: LiveJob, photo: str) -> bool:
        """False: the disk does not take it now, and a v2 job may wait; a v1 caller hears of it."""
        async with self._fetch_slots[job.record.key] if is_url(photo) else nullcontext():
            started = time.perf_counter()
            data = await self._face_stage.read(photo)
            self._metrics.stage("fetch", time.perf_counter() - started)
            refusal = await self._storage.write_photo(job.id, data, is_wanted=lambda: not job.ending)
        if refusal is not None and job.record.api == "v1":
            raise refusal
        return refusal is None

    async def _photo_again(self, job: LiveJob) -> str:
        """What a v2 job was submitted with, once the disk may take its photo."""
        while True:
            await self._room_on_disk()
            with suppress(OSError):  # no file handle is free; its deadline ends the wait
                return (await self._read_body(job.id)).photo

    async def _room_on_disk(self) -> None:
        """Return when what the disk has refused may be tried again."""
        while True:
            await asyncio.sleep(TRY_AGAIN_S)
            if not (self._storage.is_low or self._storage.is_failing):
                return

    async def _read_body(self, job_id: str) -> ParsedBody:
        """What a v2 job was submitted with. Raises OSError or BadRequest."""
        return await asyncio.to_thread(self._parse, await self._storage.read_body(job_id))

    def _make_ready(self, job: LiveJob) -> None:
        if not job.ending:
            self._dispatcher.make_ready(job)

    # what workers say

    def _on_event(self, device: str, event: WorkerEvent) -> None:
        match event:
            case EngineReady(info):
                self.info = info
                self._dispatcher.device_ready(device)
                self._on_ready(info)
            case EngineFailedToLoad(error):
                self._lose_engines(error)
            case PoolBroken(reason):
                self._lose_engines(EngineFailed(reason))
            case DeviceFault(reason):
                log.error("device fault", device=device, reason=reason)
            case WorkerDied():
                self.questions.device_lost(device, NotReady(_ENGINE_DIED))
                self._on_death(device, event)
            case FacesFound() | AskFailed():
                self.questions.answered(event)
            case Finished() | JobFailed() | Preparing() | Prepared() | Stepping() | Stepped():
                job = self.live.get(event.job_id)
                if job is not None and not job.ending:
                    self._on_job_event(device, job, event)
                elif isinstance(event, Finished):
                    self._spawn(self._delete_unwanted(event))

    def _on_job_event(
        self,
        device: str,
        job: LiveJob,
        event: Finished | JobFailed | Preparing | Prepared | Stepping | Stepped,
    ) -> None:
        match event:
            case Prepared(_, timings, cache_hits):
                self._measure(timings, "decode_photo", "face", "text")
                for cache, hit in cache_hits.items():
                    self._metrics.cache_lookup(cache, hit=hit)
            case Preparing():
                self._count()
            case Stepping():
                self._on_beginning(job)
            case Stepped(_, step, num_steps, jobs):
                self._metrics.batch(jobs)
                job.step = step
                if step == num_steps:
                    self._dispatcher.denoised(job)
            case Finished(_, _, files, timings, device_memory):
                self._measure(timings, "denoise", "decode", "encode")
                if device_memory is not None:
                    self._metrics.device_memory(device, device_memory)
                self.end(job, files=files)
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
            self._spawn(self._storage.try_save(job.record))

    async def _delete_unwanted(self, late: Finished) -> None:
        """Pictures that came after their job had ended otherwise, and perhaps been deleted."""
        if job := self.live.get(late.job_id):
            await job.ended.wait()
        record = job.record if job else await self._storage.get(late.job_id)
        if record is None or record.state is not JobState.COMPLETED:
            await self._storage.delete_media(late.media_id)

    # when something went wrong

    def _on_failure(self, job: LiveJob, error: PulidError) -> None:
        job.failures += 1
        may_retry = job.record.api == "v2" and error.code in _WORTH_A_RETRY
        if not may_retry or job.failures >= MAX_TRIES or job.record.tries >= MAX_TRIES:
            self.end(job, error=error)
            return
        self._dispatcher.forget(job)
        self._requeue(job)
        self._spawn(self._retry_later(job))

    async def _retry_later(self, job: LiveJob) -> None:
        """A turn again once there may be room for its pictures; its deadline ends the wait."""
        await self._room_on_disk()
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
            if not self._is_draining and (error := _hopeless(job.record)) is not None:
                self.end(job, error=error)
            else:
                self._requeue(job)
                self._make_ready(job)
        if self._is_draining:
            self._refuse_waiting_calls()

    def _requeue(self, job: LiveJob) -> None:
        job.back_to_queue()
        job.record = replace(job.record, state=JobState.QUEUED, started_at=None)
        self._dispatcher.enqueue(job, front=True)
        self._spawn(self._storage.try_save(job.record))
        job.touch()

    def _lose_engines(self, error: PulidError) -> None:
        """No worker will come back: v2 jobs stay for the next server, v1 callers hear it now."""
        self.fault = error
        log.error("engine lost", code=error.code)
        self._end_calls(NotReady("The engine has stopped. Send the request again later."))
        self._on_lost(error)

    async def _resume(self, record: JobRecord) -> None:
        """A job of a dead server. It gets a new deadline: the old one ran on while nobody worked."""
        if record.api == "v1":
            error: PulidError | None = JobInterrupted(_STOPPED)
        else:
            error = _hopeless(record)
        if error is None:
            try:
                parsed = await self._read_body(record.id)
            except (OSError, PulidError):
                error = JobInterrupted("The request could not be read again after a restart.")
        if error is not None:
            await self._storage.save_end(ended_record(record, error=error), media_ttl_s=0)
            return
        deadline_at = max(record.deadline_at, time.time() + self._limits.job_deadline_s)
        record = replace(record, state=JobState.QUEUED, started_at=None, deadline_at=deadline_at)
        await self._storage.save(record)
        self.begin(self.adopt(record, parsed, front=True), parsed.photo)

    # the end

    async def _write_end(self, job: LiveJob, record: JobRecord) -> None:
        written = await self._is_written(record)
        if written:
            del self.live[job.id]
        job.record = record
        job.ended.set()
        job.touch()
        self._unfinished_of[record.key] -= 1
        self._log_end(record)
        while not written:  # the end is kept in memory until the disk takes it
            await asyncio.sleep(TRY_AGAIN_S)
            if written := await self._is_written(record):
                del self.live[job.id]

    async def _is_written(self, record: JobRecord) -> bool:
        """False: the disk did not take it. What it will never take is logged, and not tried again."""
        try:
            await self._storage.save_end(record, media_ttl_s=self._limits.media_ttl_s)
        except StoreFailed:
            return False
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


def ended_record(
    record: JobRecord, *, files: tuple[JobFile, ...] = (), error: PulidError | None = None
) -> JobRecord:
    """FAILED with the error's text and code, or COMPLETED with the files."""
    if error is not None:
        return replace(
            record, state=JobState.FAILED, finished_at=time.time(), error=str(error), error_code=error.code
        )
    return replace(record, state=JobState.COMPLETED, finished_at=time.time(), files=files)


def _hopeless(record: JobRecord) -> PulidError | None:
    """Why a job is not tried again; None where it is."""
    if record.deaths >= MAX_DEATHS:
        return EngineFailed("The engine died twice over this request.")
    if record.tries >= MAX_TRIES:
        return JobInterrupted(f"The server was interrupted {MAX_TRIES} times over this request.")
    return None
