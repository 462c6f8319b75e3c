"""Which job each device works on. Between the scheduler, which decides whose turn it is, and the pool.

A device runs one job and prepares the next one beside it (photo, face, prompt), so that it never
waits. A job that a worker died over is prepared and run alone: if the worker dies again, it is
known who did it. Lives on the event loop; knows no store and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.jobs.live import LiveJob
from server.jobs.messages import Admit, Cancel, Prepare, ToWorker, Watch
from server.jobs.scheduler import Scheduler, Waiting


@dataclass(slots=True)
class _Device:
    ready: bool = False
    running: LiveJob | None = None  # admitted; its last step is not done
    ahead: LiveJob | None = None  # chosen to run next
    saving: set[LiveJob] = field(default_factory=set)  # painted, its pictures not yet on disk

    @property
    def jobs(self) -> set[LiveJob]:
        return self.saving | {job for job in (self.running, self.ahead) if job is not None}


class Dispatcher:
    def __init__(
        self,
        *,
        devices: tuple[str, ...],
        scheduler: Scheduler,
        live: Mapping[str, LiveJob],
        send: Callable[[str, ToWorker], None],
        photo_paths: Callable[[str, int], tuple[Path, ...]],
        now: Callable[[], float],
        looks_ahead: bool = True,
    ) -> None:
        """`looks_ahead`: a busy device has its next job chosen and prepared."""
        self._devices = {name: _Device() for name in devices}
        self._scheduler = scheduler
        self._live = live
        self._send = send
        self._photo_paths = photo_paths
        self._now = now
        self._looks_ahead = looks_ahead
        self._paused = False

    def enqueue(self, job: LiveJob, *, front: bool = False) -> None:
        """Put a job into the queue; it gets a turn once `make_ready` is called. Raises Busy when full."""
        record = job.record
        shape = (record.height, record.width, record.max_sequence_length, record.num_outputs)
        self._scheduler.add(
            Waiting(
                job_id=job.id,
                key=record.key,
                shape=shape,
                submitted_at=record.submitted_at,
                alone=job.alone,
            ),
            front=front,
        )

    def make_ready(self, job: LiveJob) -> None:
        """The job's photos are there."""
        self._scheduler.make_ready(job.id)
        self.fill()

    def device_ready(self, device: str) -> None:
        self._devices[device].ready = True
        self.fill()

    def pause(self) -> None:
        """Start nothing more; what runs goes on."""
        self._paused = True

    @property
    def any_ready(self) -> bool:
        return any(device.ready for device in self._devices.values())

    @property
    def ready(self) -> dict[str, bool]:
        """By device: whether it has a worker that can work."""
        return {name: device.ready for name, device in self._devices.items()}

    def device_for_question(self) -> str | None:
        """A device that may be asked about a photo now: an idle one, if there is one.

        None where there is none; a job that runs alone has nothing beside it, or its worker's death
        would again have two suspects.
        """
        able = [
            name
            for name, device in self._devices.items()
            if device.ready and not any(job.alone for job in device.jobs)
        ]
        return min(able, key=lambda name: len(self._devices[name].jobs), default=None)

    @property
    def painting(self) -> tuple[LiveJob, ...]:
        """Jobs whose steps are running or whose pictures are being saved."""
        return tuple(
            job for device in self._devices.values() for job in device.jobs if job is not device.ahead
        )

    def position(self, job: LiveJob) -> int | None:
        """How many jobs come before it, 0 for one that has a device; None for a job that has ended."""
        if any(job in device.jobs for device in self._devices.values()):
            return 0
        position = self._scheduler.position(job.id)
        ahead = sum(device.ahead is not None for device in self._devices.values())
        return None if position is None else position + ahead

    def watched(self, job: LiveJob) -> None:
        """Its first watcher has come, or its last one has left. Whoever gets it later hears it then."""
        for name, device in self._devices.items():
            if job in device.jobs and job.prepare_sent:
                self._send(name, Watch(job.id, job.watchers > 0))

    def denoised(self, job: LiveJob) -> None:
        """Its last step is done: the device is free, though its pictures are still being saved."""
        for device in self._devices.values():
            if device.running is job:
                device.running = None
                device.saving.add(job)
        self.fill()

    def forget(self, job: LiveJob, *, is_painted: bool = False) -> None:
        """The job has ended, wherever it was; unless its pictures are done, its worker must hear of it."""
        self._scheduler.remove(job.id)
        for name, device in self._devices.items():
            if job not in device.jobs:
                continue
            if not is_painted:
                self._send(name, Cancel(job.id))  # a worker that is done with it ignores this
            self._release(device, job)
        self.fill()

    def take_back(self, device_name: str) -> set[LiveJob]:
        """The jobs a dead worker had; the caller enqueues them again or ends them."""
        device = self._devices[device_name]
        device.ready = False
        jobs = device.jobs
        for job in jobs:
            self._release(device, job)
            job.back_to_queue()
        return jobs

    def fill(self) -> None:
        """Give every device what it may have now; idle ones first, before a busy one looks ahead."""
        if self._paused:
            return
        for name, device in sorted(self._devices.items(), key=lambda item: item[1].running is not None):
            while device.ready and self._fill_one(name, device):
                pass

    def _fill_one(self, name: str, device: _Device) -> bool:
        """Choose or send one thing; False when nothing is left to do for the device."""
        if device.ahead is None:
            return self._choose(name, device)
        job = device.ahead
        if job.alone and (device.running is not None or device.saving):
            return False
        if not job.prepare_sent:
            job.prepare_sent = True
            is_next = device.running is None
            self._send(name, self._prepare(job, is_admitted=is_next))
            if job.watchers:
                self._send(name, Watch(job.id, True))
            if is_next:
                device.running, device.ahead = job, None
            return True
        if device.running is None:  # the worker starts it as soon as it is prepared
            device.running, device.ahead = job, None
            self._send(name, Admit(job.id))
            return True
        return False

    def _choose(self, name: str, device: _Device) -> bool:
        if any(job.alone for job in device.jobs) or (device.running and not self._looks_ahead):
            return False
        waiting = self._scheduler.next_job(name, self._now())
        if waiting is None:
            return False
        device.ahead = self._live[waiting.job_id]
        return True

    def _prepare(self, job: LiveJob, *, is_admitted: bool) -> Prepare:
        return Prepare(
            job_id=job.id,
            request=job.request,
            photos=self._photo_paths(job.id, job.photos),
            output=job.output,
            media_id=job.record.media_id,
            is_admitted=is_admitted,
            alone=job.alone,
        )

    def _release(self, device: _Device, job: LiveJob) -> None:
        self._scheduler.ended(job.id)
        device.saving.discard(job)
        if device.running is job:
            device.running = None
        if device.ahead is job:
            device.ahead = None
