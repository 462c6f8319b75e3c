"""Names, labels and buckets of every metric, in one place. Each app has a registry of its own.

Whatever happens, the number of series is bounded: labels are route templates, status codes, names
of configured keys, job states, error codes, stages and devices, never anything a caller can invent.
Knows nothing of jobs and requests beyond the numbers it is told; asks nobody for them but the
kernel, for those of its own process.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

import server

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

STAGES = ("fetch", "decode_photo", "face", "text", "denoise", "decode", "encode")

_HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120)
_WAIT_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BATCH_JOBS = (1, 2, 3, 4, 6, 8, 12, 16)
_STEP_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class JobMetrics:
    """What happens to jobs and workers. The job service tells; every call is cheap."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._submitted = Counter("flux_pulid_jobs_submitted", "Accepted jobs.", ["api"], registry=registry)
        self._ended = Counter(
            "flux_pulid_jobs_ended",
            "Jobs by their last state and, where FAILED, the code of the reason.",
            ["state", "code"],
            registry=registry,
        )
        self._depth = Gauge("flux_pulid_queue_depth", "Jobs that wait for a device.", registry=registry)
        self._running = Gauge("flux_pulid_jobs_running", "Jobs in an engine.", registry=registry)
        self._wait = Histogram(
            "flux_pulid_queue_wait_seconds",
            "From submit to the engine's start.",
            registry=registry,
            buckets=_WAIT_S,
        )
        self._stage = Histogram(
            "flux_pulid_stage_seconds",
            "Time of each part of a job.",
            ["stage"],
            registry=registry,
            buckets=_STAGE_S,
        )
        self._batch = Histogram(
            "flux_pulid_batch_jobs",
            "Jobs that shared a denoising step.",
            registry=registry,
            buckets=_BATCH_JOBS,
        )
        self._deaths = Counter(
            "flux_pulid_worker_deaths", "Worker processes that ended unasked.", registry=registry
        )
        self._cache = Counter(
            "flux_pulid_cache_lookups", "Lookups in the engine's caches.", ["cache", "hit"], registry=registry
        )
        self._vram = Gauge(
            "flux_pulid_device_memory_bytes", "Memory in use on a device.", ["device"], registry=registry
        )
        self._leases = Gauge(
            "flux_pulid_leases_held",
            "Unfinished jobs that are this server's, where several share them.",
            registry=registry,
        )
        self._lost = Counter(
            "flux_pulid_leases_lost", "Jobs that others have taken from this server.", registry=registry
        )
        self._taken_over = Counter(
            "flux_pulid_jobs_taken_over", "Jobs of others that this server has taken up.", registry=registry
        )
        self._steps = Histogram(
            "flux_pulid_device_step_seconds",
            "Denoising steps of a device; their sum is the time in which it was busy with them.",
            ["device"],
            registry=registry,
            buckets=_STEP_S,
        )
        self._painted = Counter(
            "flux_pulid_device_jobs", "Jobs whose pictures a device has made.", ["device"], registry=registry
        )
        self._skipped = Counter(
            "flux_pulid_device_skipped_steps",
            "Denoising steps that a device has skipped; those of both branches of true CFG.",
            ["device"],
            registry=registry,
        )
        self._restarts = Counter(
            "flux_pulid_device_restarts",
            "Engines that were loaded again on a device, after the end of its worker.",
            ["device"],
            registry=registry,
        )
        self._out_of_service = Gauge(
            "flux_pulid_device_out_of_service",
            "1: no worker is started on this device again.",
            ["device"],
            registry=registry,
        )
        for name in STAGES:
            self._stage.labels(name)

    def submitted(self, api: str) -> None:
        self._submitted.labels(api).inc()

    def queued(self, depth: int) -> None:
        """How many jobs wait now."""
        self._depth.set(depth)

    def running(self, count: int) -> None:
        """How many jobs are in engines now."""
        self._running.set(count)

    def started(self, wait_s: float) -> None:
        """A job's turn came, `wait_s` seconds after its submit."""
        self._wait.observe(wait_s)

    def stage(self, name: str, seconds: float) -> None:
        """A part of a job is done. Names that are no stage are passed over."""
        if name in STAGES:
            self._stage.labels(name).observe(seconds)

    def batch(self, jobs: int) -> None:
        """A denoising step was shared by that many jobs."""
        self._batch.observe(jobs)

    def ended(self, state: str, code: str | None) -> None:
        self._ended.labels(state, code or "").inc()

    def worker_died(self) -> None:
        self._deaths.inc()

    def leases(self, held: int) -> None:
        """How many unfinished jobs this server owns now."""
        self._leases.set(held)

    def lease_lost(self) -> None:
        self._lost.inc()

    def taken_over(self, jobs: int) -> None:
        self._taken_over.inc(jobs)

    def cache_lookup(self, cache: str, *, hit: bool) -> None:
        """`cache` is identity or prompt."""
        self._cache.labels(cache, str(hit).lower()).inc()

    def device_known(self, device: str) -> None:
        """The server has this device: its series begin at 0."""
        for metric in (self._steps, self._painted, self._skipped, self._restarts, self._out_of_service):
            metric.labels(device)

    def device_stepped(self, device: str, seconds: float) -> None:
        self._steps.labels(device).observe(seconds)

    def device_painted(self, device: str, *, skipped_steps: int) -> None:
        self._painted.labels(device).inc()
        self._skipped.labels(device).inc(skipped_steps)

    def device_restarted(self, device: str) -> None:
        self._restarts.labels(device).inc()

    def device_lost(self, device: str) -> None:
        """For good."""
        self._out_of_service.labels(device).set(1)

    def device_memory(self, device: str, used: int) -> None:
        """`used` in bytes."""
        self._vram.labels(device).set(used)


class Metrics:
    """All metrics of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.jobs = JobMetrics(self._registry)
        self._requests = Counter(
            "flux_pulid_http_requests",
            "Answered requests. No route: an unknown address. No key: none was needed, or it was refused.",
            ["method", "route", "code", "key"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "flux_pulid_http_request_seconds",
            "From the request's head to the answer's last byte.",
            ["route"],
            registry=self._registry,
            buckets=_HTTP_S,
        )
        self._ready = Gauge("flux_pulid_ready", "1: a job would start now.", registry=self._registry)
        self._workers = Gauge(
            "flux_pulid_worker_ready",
            "1: the worker of this device has an engine and can work.",
            ["device"],
            registry=self._registry,
        )
        self._capacity = Gauge(
            "flux_pulid_queue_capacity",
            "Jobs that may wait: max_queued_jobs.",
            registry=self._registry,
        )
        self._free = Gauge(
            "flux_pulid_data_free_bytes",
            "Free room on the disk of the data folder.",
            registry=self._registry,
        )
        self._writable = Gauge(
            "flux_pulid_data_writable",
            "0: the last write to the data folder has failed.",
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)  # of the server's process; the workers have their own
        build = Info("flux_pulid_build", "What is running.", registry=self._registry)
        build.info({"version": server.__version__, "python": platform.python_version()})

    def answered(self, *, method: str, route: str, code: int, key: str, seconds: float) -> None:
        """A request is over. `route` is its template, "" for an unknown address."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(code), key).inc()
        self._duration.labels(route).observe(seconds)

    def stands(
        self, *, ready: bool, workers: Mapping[str, bool], capacity: int, free: int, writable: bool
    ) -> None:
        """How the server stands at this scrape. `workers`: by device, can it work? `free`: bytes."""
        self._ready.set(ready)
        for device, can_work in workers.items():
            self._workers.labels(device).set(can_work)
        self._capacity.set(capacity)
        self._free.set(free)
        self._writable.set(writable)

    def text(self) -> bytes:
        """All series in the Prometheus text format."""
        return generate_latest(self._registry)
