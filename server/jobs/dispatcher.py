"""Which job each device works on. Between the scheduler, which decides whose turn it is, and the pool.

A device runs one job and prepares the next one beside it (photo, face, prompt), so that it never
waits. What it prepares is still free to go: a device with nothing to do takes it over, so that none idles
while a job waits, and so does one that is about to begin a later job, once too many have been begun before
it. Among several idle devices a job gets the one that has most of it at hand (`at_hand.py`).

A job that a worker died over is prepared and run alone: if the worker dies again, it is known who did
it. Lives on the event loop; knows no store and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.jobs.at_hand import AtHand
from server.jobs.live import LiveJob
from server.jobs.messages import Admit, Cancel, Prepare, ToWorker, Watch
from server.jobs.scheduler import Scheduler, Waiting

# So many jobs that were chosen later may begin before one that is being prepared beside a long job. Taking
# it over sooner would have photos read twice for nothing, where devices only end in another order.
MAX_BEGUN_BEFORE = 16


@dataclass(slots=True, eq=False)
class _Device:
    name: str
    ready: bool = False
    running: LiveJob | None = None  # admitted; its last step is not done
    ahead: LiveJob | None = None  # chosen to run next
    saving: set[LiveJob] = field(default_factory=set)  # painted, its pictures not yet on disk
    at_hand: AtHand = field(default_factory=AtHand)
    begun: int = 0  # when it began its last job, as a number of jobs begun anywhere

    @property
    def jobs(self) -> set[LiveJob]:
        return self.saving | {job for job in (self.running, self.ahead) if job is not None}

    @property
    def has_one_alone(self) -> bool:
        return any(job.alone for job in self.jobs)

    def may_begin(self, job: LiveJob) -> bool:
        """One that is alone has nothing beside it."""
        return self.running is None and not (job.alone and self.jobs - {job})


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
        self._devices = {name: _Device(name) for name in devices}
        self._device_of: dict[LiveJob, _Device] = {}
        self._free: dict[_Device, None] = {}  # ready, and nothing runs
        self._busy: dict[_Device, None] = {}  # by when their jobs began: the first will be free first
        self._ahead: dict[LiveJob, int] = {}  # the number of the choice, oldest first
        self._chosen = 0  # jobs that the scheduler gave out
        self._begun = 0
        self._looks_ahead = looks_ahead
        self._scheduler = scheduler
        self._live = live
        self._send = send
        self._photo_paths = photo_paths
        self._now = now
        self._paused = False

    def enqueue(self, job: LiveJob, *, front: bool = False) -> None:
        """Put a job into the queue; it gets a turn once `make_ready` is called. Raises Busy when full."""
        record = job.record
        self._scheduler.add(
            Waiting(
                job_id=job.id,
                key=record.key,
                shape=job.shape,
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
        self._free[self._devices[device]] = None
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
        able = [name for name, device in self._devices.items() if device.ready and not device.has_one_alone]
        return min(able, key=lambda name: len(self._devices[name].jobs), default=None)

    @property
    def painting(self) -> tuple[LiveJob, ...]:
        """Jobs whose steps are running or whose pictures are being saved."""
        return tuple(job for job in self._device_of if job not in self._ahead)

    def position(self, job: LiveJob) -> int | None:
        """How many jobs come before it, 0 for one that has a device; None for a job that has ended."""
        if job in self._device_of:
            return 0
        position = self._scheduler.position(job.id)
        return None if position is None else position + len(self._ahead)

    def has(self, device: str, job: LiveJob) -> bool:
        """Whether the job is this device's; another one may have had it before."""
        return self._device_of.get(job) is self._devices[device]

    def watched(self, job: LiveJob) -> None:
        """Its first watcher has come, or its last one has left. Whoever gets it later hears it then."""
        device = self._device_of.get(job)
        if device is not None and job.prepare_sent:
            self._send(device.name, Watch(job.id, job.watchers > 0))

    def denoised(self, job: LiveJob) -> None:
        """Its last step is done: the device is free, though its pictures are still being saved."""
        device = self._device_of.get(job)
        if device is not None and device.running is job:
            self._end_run(device)
            device.saving.add(job)
        self.fill()

    def forget(self, job: LiveJob, *, is_painted: bool = False) -> None:
        """The job has ended, wherever it was; unless its pictures are done, its worker must hear of it."""
        self._scheduler.remove(job.id)
        device = self._device_of.get(job)
        if device is not None:
            if not is_painted:
                self._send(device.name, Cancel(job.id))  # a worker that is done with it ignores this
            self._release(device, job)
        self.fill()

    def take_back(self, device_name: str) -> set[LiveJob]:
        """The jobs a dead worker had; the caller enqueues them again or ends them."""
        device = self._devices[device_name]
        jobs = device.jobs
        for job in jobs:
            self._release(device, job)
            job.back_to_queue()
        device.ready = False
        self._free.pop(device, None)
        device.at_hand.forget()
        self._scheduler.prefer(device_name, None)
        return jobs

    def fill(self) -> None:
        """Give every device what it may have now; idle ones first, before a busy one looks ahead."""
        if self._paused:
            return
        while self._occupy_one():
            pass
        while self._look_ahead_once():
            pass

    # idle devices

    def _occupy_one(self) -> bool:
        """Let one device that is free begin a job; False when there is none, or no job for it."""
        late = self._held_up_too_long()
        for device in self._free:
            if device.ahead is not None and device.may_begin(device.ahead):
                if late is not None and device.may_begin(late):
                    self._take_over(device, late)  # and its own next one stays its next one
                else:
                    self._begin(device, device.ahead)
                return True
        takers = [device for device in self._free if not device.has_one_alone]
        return bool(takers) and (
            self._take_over_by(takers, late)
            or self._begin_from_queue(takers)
            or any(self._take_over_by(takers, job) for _, job in self._held_up())
        )

    def _begin_from_queue(self, takers: list[_Device]) -> bool:
        first = self._scheduler.first()
        if first is None:
            return False
        device = _best_for(self._live[first.job_id], takers)
        job = self._choose(device)
        if job is not None and device.may_begin(job):
            self._begin(device, job)
        return job is not None

    def _take_over_by(self, takers: list[_Device], job: LiveJob | None) -> bool:
        able = [] if job is None else [device for device in takers if device.may_begin(job)]
        if job is None or not able:
            return False
        self._take_over(_best_for(job, able), job)
        return True

    def _held_up(self) -> Iterator[tuple[int, LiveJob]]:
        """Jobs that wait for the end of another on their device, with their places in order of choice."""
        return (
            (place, job) for place, job in enumerate(self._ahead) if not self._device_of[job].may_begin(job)
        )

    def _held_up_too_long(self) -> LiveJob | None:
        """The first of them, if so many that were chosen later have begun."""
        for place, job in self._held_up():
            still_ahead = len(self._ahead) - place - 1
            begun_before = self._chosen - self._ahead[job] - still_ahead
            return job if begun_before >= MAX_BEGUN_BEFORE else None
        return None

    def _take_over(self, device: _Device, job: LiveJob) -> None:
        """No attempt is lost by that: none had begun."""
        holder = self._device_of.pop(job)
        holder.ahead = None
        if job.prepare_sent:
            self._send(holder.name, Cancel(job.id))
            job.prepare_sent = False
        if holder.running is not None:
            self._scheduler.prefer(holder.name, holder.running.shape)
        if device.ahead is None:
            self._scheduler.prefer(device.name, job.shape)
        self._begin(device, job)

    # both

    def _look_ahead_once(self) -> bool:
        """Let one busy device prepare its next job; False when none may, or no job waits."""
        if not self._looks_ahead or self._scheduler.first() is None:
            return False
        able = (device for device in self._busy if device.ahead is None and not device.has_one_alone)
        device = next(able, None)
        job = None if device is None else self._choose(device)
        if device is not None and job is not None and not job.alone:
            self._prepare(device, job, is_admitted=False)
        return job is not None

    def _choose(self, device: _Device) -> LiveJob | None:
        """Whose turn it is on this device: its next one. None where no job waits."""
        waiting = self._scheduler.next_job(device.name, self._now())
        if waiting is None:
            return None
        job = self._live[waiting.job_id]
        self._chosen += 1
        device.ahead = job
        self._device_of[job] = device
        self._ahead[job] = self._chosen
        return job

    def _begin(self, device: _Device, job: LiveJob) -> None:
        """The worker starts it as soon as it is prepared."""
        if device.ahead is job:
            device.ahead = None
        del self._ahead[job]
        self._device_of[job] = device
        device.running = job
        device.at_hand.painted(job.shape)
        self._begun += 1
        device.begun = self._begun
        del self._free[device]
        self._busy[device] = None
        if job.prepare_sent:
            self._send(device.name, Admit(job.id))
        else:
            self._prepare(device, job, is_admitted=True)

    def _prepare(self, device: _Device, job: LiveJob, *, is_admitted: bool) -> None:
        job.prepare_sent = True
        device.at_hand.read(job.photo_marks)
        prepare = Prepare(
            job_id=job.id,
            request=job.request,
            photos=self._photo_paths(job.id, job.photos),
            output=job.output,
            media_id=job.record.media_id,
            is_admitted=is_admitted,
            alone=job.alone,
        )
        self._send(device.name, prepare)
        if job.watchers:
            self._send(device.name, Watch(job.id, True))

    def _end_run(self, device: _Device) -> None:
        device.running = None
        del self._busy[device]
        if device.ready:
            self._free[device] = None

    def _release(self, device: _Device, job: LiveJob) -> None:
        self._scheduler.ended(job.id)
        del self._device_of[job]
        self._ahead.pop(job, None)
        device.saving.discard(job)
        if device.running is job:
            self._end_run(device)
        if device.ahead is job:
            device.ahead = None


def _best_for(job: LiveJob, devices: list[_Device]) -> _Device:
    """The one that would have to make least anew for it; else the one that has idled longest.

    A recording counts for more than a photo: it is made beside nothing.
    """

    def rank(device: _Device) -> tuple[bool, bool, int, int]:
        has_painted = device.at_hand.has_painted(job.shape)
        photos = device.at_hand.photos_among(job.photo_marks)
        return device.may_begin(job), has_painted, photos, device.begun if has_painted else -device.begun

    return max(devices, key=rank)
