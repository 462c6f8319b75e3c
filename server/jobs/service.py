"""JobService: submit, wait, cancel; the use cases, one method each. Jobs live in memory.

It lives on the event loop: its own state is touched by no other thread. What blocks is elsewhere:
the engine in its worker's thread, fetching and decoding in the face stage, encoding in a helper
thread. A job ends exactly once, in `_end`; whoever comes later is ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

import anyio.to_thread

from pulid.engine import Engine, EngineInfo, GenerationRequest, GenerationResult, RgbImage, StepEvent
from pulid.errors import Busy, EngineFailed, PulidError
from server.jobs.face_stage import FaceStage
from server.jobs.files import ImageFile, OutputOptions, encode_images
from server.jobs.job import Job, JobCancelled, JobState, JobTimedOut, NotReady
from server.jobs.worker import EngineLost, EngineReady, JobStarted, Report, Worker
from server.logs import get_logger, trace_of

log = get_logger("jobs")

_DECODED_AHEAD = 2  # photos that wait as pixels; the others wait as files, twenty times smaller
_STOP_TIMEOUT_S = 30.0  # for the step that is running when the server ends


class JobService:
    def __init__(
        self,
        *,
        create_engine: Callable[[], Engine],
        face_stage: FaceStage,
        max_queued: int,
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[PulidError], None] = lambda error: None,
    ) -> None:
        self._worker = Worker(create_engine, self._report_from_worker)
        self._face_stage = face_stage
        self._max_queued = max_queued
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._jobs: dict[str, Job] = {}  # those that have not ended
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._decoded_ahead = asyncio.Semaphore(_DECODED_AHEAD)
        self._info: EngineInfo | None = None
        self._fault: PulidError | None = None
        self._closing = False

    async def start(self) -> None:
        """Begin to load the engine; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def close(self) -> None:
        """Fail what has not ended, and free the device."""
        self._closing = True
        for job in self.unfinished:
            self._end(job, error=NotReady("The server was stopped before this picture was done."))
        await anyio.to_thread.run_sync(self._worker.stop, _STOP_TIMEOUT_S)

    @property
    def engine_info(self) -> EngineInfo | None:
        return self._info

    @property
    def unfinished(self) -> tuple[Job, ...]:
        """The jobs that wait or run."""
        return tuple(self._jobs.values())

    @property
    def not_ready_reason(self) -> str | None:
        """Why no job would be taken now; None when one would."""
        if self._closing:
            return "stopping"
        if self._fault is not None:
            return str(self._fault)
        if self._info is None:
            return "loading"
        return None if self._worker.is_alive else "the engine's thread has ended"

    def submit(
        self,
        job_id: str,
        request: GenerationRequest,
        *,
        photo: str,
        output: OutputOptions,
        deadline_s: float,
    ) -> Job:
        """Accept a job: it will end within `deadline_s` seconds. Raises NotReady or Busy."""
        if (reason := self.not_ready_reason) is not None:
            raise NotReady(f"The server cannot take work now: {reason}.")
        if sum(job.state is JobState.QUEUED for job in self.unfinished) >= self._max_queued:
            raise Busy(f"All {self._max_queued} places in the queue are taken. Try again in a few seconds.")
        job = Job(id=job_id, request=request, output=output)
        self._jobs[job.id] = job
        self._timers[job.id] = self._loop.call_later(deadline_s, self._expire, job, deadline_s)
        self._spawn(job, self._prepare(job, photo))
        return job

    async def wait(self, job: Job) -> Job:
        """The job once it is COMPLETED. Raises what made it FAILED."""
        await job.ended.wait()
        if job.error is not None:
            raise job.error
        return job

    def cancel(self, job: Job) -> None:
        """End a job that nobody waits for any more. The engine drops it before its next step."""
        self._end(job, error=JobCancelled())

    def _expire(self, job: Job, deadline_s: float) -> None:
        self._end(job, error=JobTimedOut(f"The picture was not ready within {deadline_s:g} seconds."))

    async def _prepare(self, job: Job, photo: str) -> None:
        """Photo to pixels, then into the worker's hands.

        The photo is read and decoded at once, so that a bad one is refused although the engine is
        busy. If enough pixels wait already, these are dropped and made again when it is their turn.
        """
        data = await self._face_stage.read(photo)
        del photo
        image: RgbImage | None = await self._face_stage.decode(data)
        if self._decoded_ahead.locked():
            image = None
        async with self._decoded_ahead:
            if image is None:
                image = await self._face_stage.decode(data)
            self._worker.admit(job.id, replace(job.request, id_image=image))
            del image, data
            await job.started.wait()

    async def _encode(self, job: Job, result: GenerationResult) -> None:
        self._end(job, files=await anyio.to_thread.run_sync(encode_images, result.images, job.output))

    def _end(self, job: Job, *, files: tuple[ImageFile, ...] = (), error: PulidError | None = None) -> None:
        if self._jobs.pop(job.id, None) is None:
            return
        job.files, job.error = files, error
        job.move(JobState.FAILED if error else JobState.COMPLETED)
        self._timers.pop(job.id).cancel()
        self._worker.cancel(job.id)
        for task in self._tasks.pop(job.id):
            if task is not asyncio.current_task():
                task.cancel()
        log.info(
            "job ended",
            job_id=job.id,
            state=job.state,
            reason=error.code if error else None,
            total_s=round((job.finished_at or 0.0) - job.submitted_at, 3),
            generation_s=round(job.generation_s, 3),
        )

    def _spawn(self, job: Job, work: Coroutine[None, None, None]) -> None:
        """Run a part of a job; what it raises ends the job."""
        task = self._loop.create_task(self._guard(job, work))
        self._tasks.setdefault(job.id, set()).add(task)

    async def _guard(self, job: Job, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except PulidError as exc:
            self._end(job, error=exc)
        except Exception as exc:
            log.error("job fault", job_id=job.id, **trace_of(exc))
            self._end(job, error=EngineFailed("The picture could not be made: an internal fault."))

    def _report_from_worker(self, report: Report) -> None:
        """Called in the worker's thread: bring the report to the event loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_report, report)

    def _on_report(self, report: Report) -> None:
        match report:
            case EngineReady(info):
                self._info = info
                self._on_ready(info)
            case EngineLost(error):
                self._lose_engine(error)
            case JobStarted(job_id):
                if job_id in self._jobs:
                    self._jobs[job_id].move(JobState.PROCESSING)
            case StepEvent():
                self._on_step(report)

    def _on_step(self, event: StepEvent) -> None:
        job = self._jobs.get(event.job_id)
        if job is None:  # it was cancelled while the step ran
            return
        job.step = event.step
        if event.error is not None:
            self._end(job, error=event.error)
        elif event.result is not None:
            self._spawn(job, self._encode(job, event.result))

    def _lose_engine(self, error: PulidError) -> None:
        self._fault = error
        log.error("engine lost", code=error.code)
        for job in self.unfinished:
            self._end(job, error=EngineFailed("The engine has stopped; this picture could not be made."))
        self._on_lost(error)
