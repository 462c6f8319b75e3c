"""JobService: submit, wait, view, remove; the use cases, one method each.

What the HTTP routes may ask of the jobs. A request is on disk before its caller hears of it;
from then on `JobRunner` answers for it. v1 is v2 with a wait. Lives on the event loop, blocks nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

import anyio
import anyio.to_thread

from pulid.engine import EngineInfo, FaceChoice, Fusion, RgbImage
from pulid.errors import PulidError
from server.jobs.ends import ended_record
from server.jobs.face_stage import FaceStage
from server.jobs.job import (
    Api,
    EarlierSubmit,
    JobCancelled,
    JobFile,
    JobNotFound,
    JobRecord,
    JobState,
    NotReady,
)
from server.jobs.live import JobView, ParsedBody
from server.jobs.messages import FacesFound
from server.jobs.photos import PARSES_AT_ONCE, ParseBody, need_no_fetch
from server.jobs.runner import JobLimits, JobRunner, MakePool
from server.jobs.storage import JobStorage, digest_of
from server.loading import CreateEngine
from server.metrics import JobMetrics
from server.tracing import RequestTrace

LOOK_EVERY_S = 2.0  # at a job elsewhere: a notice of its end may be missed
UNPARSABLE = "unparsable_body"  # the code of a body that is no JSON object at all


class JobService:
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
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[PulidError], None] = lambda error: None,
        make_pool: MakePool | None = None,
    ) -> None:
        """`make_pool`: engines elsewhere in the place of worker processes, which `create_engine` is for."""
        self._storage = storage
        self._parse = parse
        self._limits = limits
        self._metrics = metrics
        self._runner = JobRunner(
            storage=storage,
            devices=devices,
            create_engine=create_engine,
            decode_photo=decode_photo,
            parse=parse,
            face_stage=face_stage,
            limits=limits,
            metrics=metrics,
            on_ready=on_ready,
            on_lost=on_lost,
            make_pool=make_pool,
        )
        self._draining = False
        self._parsing = anyio.CapacityLimiter(PARSES_AT_ONCE)

    # life

    async def start(self) -> None:
        """Open what is on disk, take up what a dead server left, and begin to load the engines.

        Raises SetupError when the data folder is in use or its database cannot be used.
        """
        await self._storage.open()
        await self._runner.start()

    def begin_drain(self) -> None:
        """Take nothing new and start nothing more; `drained` returns when what runs is done."""
        if not self._draining:
            self._draining = True
            self._runner.drain()

    async def drained(self) -> None:
        await self._runner.drained()

    def interrupt(self) -> None:
        """Let v1 callers that still wait hear that they wait in vain."""
        self._runner.interrupt()

    async def close(self) -> None:
        """End now. v2 jobs that have not ended stay on disk and go on with the next start."""
        self.begin_drain()
        await self._runner.close()
        await self._storage.close()

    # how the server stands

    @property
    def engine_info(self) -> EngineInfo | None:
        return self._runner.info

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def not_ready_reason(self) -> str | None:
        """Why no job would start now; None when one would."""
        if (reason := self._refusal()) is not None:
            return reason
        if (why := self._storage.failing) is not None:
            return why
        return None if self._runner.has_worker else self._and_how_far("the engine is being started again")

    def _and_how_far(self, reason: str) -> str:
        loading = self._runner.devices.loading
        return reason if loading is None else f"{reason}: {loading.part}, {loading.percent} percent"

    @property
    def workers(self) -> Mapping[str, bool]:
        """By device: whether its worker has an engine and can work."""
        return self._runner.workers

    @property
    def out_of_service(self) -> Mapping[str, PulidError]:
        """By device: why no worker is started there any more, while others work."""
        return self._runner.devices.out_of_service

    @property
    def queue_capacity(self) -> int:
        """Jobs that may wait; a key that has none waiting finds one place more."""
        return self._limits.max_queued

    @property
    def free_bytes(self) -> int:
        """Room on the disk of the data folder."""
        return self._storage.free_bytes

    @property
    def is_writable(self) -> bool:
        """The last write to the data folder went well."""
        return self._storage.failing is None

    def unfinished_of(self, key: str) -> int:
        """Jobs of an API key that wait or run."""
        return self._runner.unfinished_of(key)

    def _refusal(self) -> str | None:
        """Why no job is accepted now. A worker that is restarted is no reason: jobs can wait.

        Nor is a write that has failed: whether the next one does, a submit finds out itself.
        """
        if self._draining:
            return "it is going down"
        if self._runner.fault is not None:
            return str(self._runner.fault).rstrip(".")
        if self._runner.info is None:
            return self._and_how_far("the engine is still loading")
        return "its disk is full" if self._storage.is_low else None

    # use cases

    async def earlier(self, key: str, idempotency_key: str) -> EarlierSubmit | None:
        """What an API key has submitted under this Idempotency-Key."""
        return await self._storage.earlier(key, idempotency_key)

    async def repeat(self, earlier: EarlierSubmit, body: bytes) -> JobRecord:
        """The job of a submit that is sent again, as it stands. Raises IdempotencyConflict."""
        earlier.require_same(await digest_of(body))
        return self._as_it_stands(earlier.record)

    async def submit(
        self,
        body: bytes,
        *,
        key: str,
        api: Api,
        deadline_s: float,
        idempotency_key: str | None = None,
        trace: RequestTrace | None = None,
    ) -> JobRecord:
        """Accept a request; when this returns, its row is on disk, and for v2 the body it is resumed from.

        Raises NotReady, Busy, StoreFailed or IdempotencyConflict; BadRequest for a body that is not
        valid. A v2 body that is a JSON object is always accepted, and FAILED at once if not valid.
        """
        self._require_open()
        now = time.time()
        record = JobRecord(
            id=secrets.token_hex(16),
            key=key,
            api=api,
            submitted_at=now,
            deadline_at=now + deadline_s,
            media_id=secrets.token_hex(16),
        )
        try:
            parsed = await anyio.to_thread.run_sync(self._parse, body, limiter=self._parsing)
        except PulidError as exc:
            if api == "v1" or self._limits.v2_strict or exc.code == UNPARSABLE:
                raise
            return await self._accept_failed(ended_record(record, error=exc), body, idempotency_key, trace)
        self._require_open()  # a drain may have begun meanwhile
        return await self._accept(with_parameters(record, parsed), parsed, body, idempotency_key, trace)

    def _require_open(self) -> None:
        if (reason := self._refusal()) is not None:
            raise NotReady(f"The server cannot take work now: {reason}.")

    async def _accept_failed(
        self, failed: JobRecord, body: bytes, idempotency_key: str | None, trace: RequestTrace | None
    ) -> JobRecord:
        stored = await self._storage.insert(failed, body, idempotency_key=idempotency_key, keep_body=False)
        if stored.id == failed.id:
            self._metrics.submitted(failed.api)
            self._metrics.ended(failed.state, failed.error_code)
            if trace is not None:
                trace.job(failed).ended(failed)
        return self._as_it_stands(stored)

    async def _accept(
        self,
        record: JobRecord,
        parsed: ParsedBody,
        body: bytes,
        idempotency_key: str | None,
        trace: RequestTrace | None,
    ) -> JobRecord:
        job = self._runner.adopt(record, parsed)  # a place first, so that a full queue costs no write
        if trace is not None:
            job.trace = trace.job(record)
        is_v1 = record.api == "v1"
        try:
            if is_v1 and idempotency_key is None:  # nobody resumes it: its row is written beside its work
                await self._runner.begin_early(job, parsed)
            elif need_no_fetch(parsed):
                self._runner.bring_photos(job, parsed)
            stored = await self._storage.insert(
                record, body, idempotency_key=idempotency_key, keep_body=not is_v1
            )
        except BaseException:
            self._runner.drop(job)
            raise
        if stored.id != record.id:  # the answer to an earlier submit with this Idempotency-Key
            self._runner.drop(job)
            return self._as_it_stands(stored)
        self._metrics.submitted(record.api)
        self._runner.begin(job, parsed)
        return record

    def _as_it_stands(self, stored: JobRecord) -> JobRecord:
        job = self._runner.live.get(stored.id)
        return job.record if job else stored

    async def wait(self, job_id: str) -> JobRecord:
        """The record of a job once it has ended, whichever way. Raises JobNotFound."""
        while job := self._runner.live.get(job_id):
            await job.ended.wait()
            if not job.lost:
                return job.record
        return await self._ended_elsewhere(job_id)

    async def view(self, job_id: str, *, key: str, previews: bool = False) -> JobView:
        """How a job stands. Raises JobNotFound, for another key's jobs too."""
        job = self._runner.live.get(job_id)
        view = self._runner.view_of(job, previews=previews) if job else await self._view_elsewhere(job_id)
        if view.record.key != key:
            raise JobNotFound
        return view

    def watching(self, job_id: str) -> AbstractContextManager[None]:
        """While it is entered, previews of the job are made, until it has ended."""
        job = self._runner.live.get(job_id)
        return nullcontext() if job is None else self._runner.watching(job)

    async def events(self, job_id: str, *, key: str, previews: bool = False) -> AsyncIterator[JobView]:
        """Views of a job: now, at every change, and last when it has ended.

        With `previews` they have the newest one, where somebody is `watching`.
        """
        last = None
        while True:
            job = self._runner.live.get(job_id)
            changed = job.changed if job else self._runner.changed_elsewhere(job_id)
            view = await self.view(job_id, key=key, previews=previews)
            if view != last:
                yield view
                last = view
            if changed is None or view.record.state.has_ended:
                return
            with suppress(TimeoutError):  # the place in the queue moves without a word
                await asyncio.wait_for(changed.wait(), 1.0)

    async def remove(self, job_id: str, *, key: str) -> JobView:
        """Cancel a job that has not ended; delete one that has, with its pictures."""
        view = await self.view(job_id, key=key)
        if view.record.state.has_ended and job_id not in self._runner.live:
            await self._storage.delete(view.record)
            return view
        return ended_view(await self.cancel_and_wait(job_id))

    async def cancel_and_wait(self, job_id: str) -> JobRecord:
        """End a job that has not ended, at whichever server it is; its record then. Raises JobNotFound."""
        while job := self._runner.live.get(job_id):
            self._runner.end(job, error=JobCancelled())
            await job.ended.wait()
            if not job.lost:
                return job.record
        ended = ended_record(await self._stored(job_id), error=JobCancelled())
        if (stored := await self._storage.seize(ended)) is None:
            raise JobNotFound
        return stored

    def cancel(self, job_id: str) -> None:
        """End a job that nobody waits for any more; its engine drops it before the next step."""
        if job := self._runner.live.get(job_id):
            self._runner.end(job, error=JobCancelled())

    async def faces(self, photo: str, *, timeout_s: float) -> FacesFound:
        """The faces of a photo; no job. Raises NotReady, Busy, JobTimedOut, ImageRejected or EngineFailed."""
        self._require_open()
        return await self._runner.questions.faces(photo, timeout_s=timeout_s)

    async def identity(
        self, photos: Mapping[str, str], fusion: Fusion, face: FaceChoice, *, timeout_s: float
    ) -> bytes:
        """The identity file of the person in photos, each under the name of its field; no job.

        Raises what `faces` raises, NoFaceFound and SeveralFaces among it.
        """
        self._require_open()
        return await self._runner.questions.identity(photos, fusion, face, timeout_s=timeout_s)

    async def media(self, media_id: str, name: str) -> tuple[bytes, JobFile]:
        """A picture, for whoever knows its link. Raises JobNotFound, or OSError where it cannot be read."""
        found = await self._storage.picture(media_id, name)
        if found is None:
            raise JobNotFound
        return found

    async def read_outputs(self, record: JobRecord) -> list[bytes]:
        """The picture files of a COMPLETED job."""
        return await self._storage.read_pictures(record)

    async def _ended_elsewhere(self, job_id: str) -> JobRecord:
        """Of a job that is not here: another server has it, or it has ended."""
        while True:
            changed = self._runner.changed_elsewhere(job_id)
            record = await self._stored(job_id)
            if changed is None or record.state.has_ended:
                return record
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LOOK_EVERY_S)

    async def _view_elsewhere(self, job_id: str) -> JobView:
        """Of a job that has ended, or that another server has, which tells its steps now and then."""
        view = ended_view(await self._stored(job_id))
        progress = self._runner.progress_elsewhere(job_id)
        if view.record.state is not JobState.PROCESSING or progress is None:
            return view
        return replace(view, step=progress.step, seconds_left=progress.seconds_left)

    async def _stored(self, job_id: str) -> JobRecord:
        record = await self._storage.get(job_id)
        if record is None:
            raise JobNotFound
        return record


def ended_view(record: JobRecord) -> JobView:
    return JobView(record=record, step=record.num_steps if record.state is JobState.COMPLETED else 0)


def with_parameters(record: JobRecord, parsed: ParsedBody) -> JobRecord:
    """The record with what the scheduler and the answers need of a valid body."""
    request = parsed.request
    return replace(
        record,
        width=request.width,
        height=request.height,
        max_sequence_length=request.max_sequence_length,
        num_steps=request.num_steps,
        num_outputs=request.num_outputs,
        seed=request.seed,
    )
