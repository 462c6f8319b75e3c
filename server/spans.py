"""Traces as OpenTelemetry spans, sent over OTLP/HTTP: the only file that imports opentelemetry.

    POST /v1/flux-pulid             from the call's head to the answer's last byte
      job                           from submit to the row that says how it ended
        queue                       from submit to the first step; what comes before that is in it
        fetch
        decode_photo, face, text
        denoise, decode
        encode

Spans are made in the server's process alone. What happens in a worker is known from its messages:
when one arrives, and how many seconds each part took. So the parts of `Prepared` end with its
arrival and lie one before the other, `denoise` lies between the first step's and the last step's,
`encode` ends with the arrival of `Finished`, and `decode` lies between the last step's and where
`encode` begins: pictures that wait for those of another job wait there. The pipe and the event loop
make them late by milliseconds at most.

All is done on the event loop; a thread of the SDK sends. A collector that does not answer costs
spans, never a picture. What a caller sends besides `traceparent` (tracestate, baggage) is not read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import server
from server.jobs.job import JobRecord, JobState
from server.jobs.messages import Finished, JobFailed, Prepared, Stepped, Stepping
from server.tracing import JobEvent

CLOSE_S = 3.0  # for the spans that have not been sent when the server ends

_PREPARING = ("decode_photo", "face", "text")
_CACHE_OF = {"face": "identity", "text": "prompt"}  # stage -> the cache that spares it
_ERROR_TYPE = "error.type"
_STOPPED = "server_stopped"
_WORKER_DIED = "worker_died"


class SpanTracing:
    """Obeys `server.tracing.Tracing`. Exporter, sampler and batches follow the OTEL_ variables."""

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("flux-pulid-server", server.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def request(self, *, method: str, traceparent: str | None) -> RequestSpan:
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        )
        return RequestSpan(self._tracer, span, method)

    def close(self) -> None:
        # The SDK waits longer than a server that is told to end may; a daemon thread is left behind.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _resource() -> Resource:
    """Who tells: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before our own name."""
    given = OTELResourceDetector().detect().attributes
    ours = {SERVICE_NAME: "flux-pulid-server", SERVICE_VERSION: server.__version__}
    return Resource.create({name: value for name, value in ours.items() if name not in given})


class RequestSpan:
    """Obeys `server.tracing.RequestTrace`."""

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method

    def job(self, record: JobRecord) -> JobSpans:
        return JobSpans(self._tracer, self._span, record)

    def answered(self, *, route: str, code: int, request_id: str) -> None:
        if route:
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", code)
        self._span.set_attribute("flux_pulid.request_id", request_id)
        if code >= 500:
            _mark(self._span, str(code))
        self._span.end()


class JobSpans:
    """Obeys `server.tracing.JobTrace`."""

    def __init__(self, tracer: Tracer, request: Span, record: JobRecord) -> None:
        self._tracer = tracer
        self._job = tracer.start_span(
            "job",
            context=set_span_in_context(request, Context()),
            start_time=_ns(record.submitted_at),
            attributes=_what_was_asked(record),
        )
        self._under_job = set_span_in_context(self._job, Context())
        self._open: dict[str, Span] = {}
        self._denoised_at = 0  # ns: the last step was done
        self._begin("queue", _ns(record.submitted_at))

    def fetching(self) -> None:
        self._begin("fetch", time.time_ns())

    def fetched(self) -> None:
        self._done("fetch", time.time_ns())

    def heard(self, event: JobEvent) -> None:
        now = time.time_ns()
        match event:
            case Prepared(_, timings, cache_hits):
                self._prepared(timings, cache_hits, now)
            case Stepping():
                self._done("queue", now)
                self._begin("denoise", now)
            case Stepped(step=step, num_steps=num_steps) if step == num_steps:
                self._done("denoise", now)
                self._begin("decode", now)
                self._denoised_at = now
            case Finished(timings=timings):
                self._finished(timings, now)
            case JobFailed(_, error):
                self._break_off(error.code)

    def requeued(self) -> None:
        """What is still open then was cut off by its worker's death; a wait that goes on is one wait."""
        self._break_off(_WORKER_DIED)
        if "queue" not in self._open:
            self._begin("queue", time.time_ns())

    def ended(self, record: JobRecord) -> None:
        self._job.set_attribute("flux_pulid.state", record.state)
        self._job.set_attribute("flux_pulid.tries", record.tries)
        if record.state is not JobState.COMPLETED:
            code = record.error_code or _STOPPED
            self._break_off(code, but=())
            _mark(self._job, code)
        self._job.end()

    def _prepared(self, timings: Mapping[str, float], cache_hits: Mapping[str, bool], now: int) -> None:
        end = now
        for stage in reversed(_PREPARING):
            if stage not in timings:
                continue
            start = end - _ns(timings[stage])
            self._begin(stage, start)
            if (hit := cache_hits.get(_CACHE_OF.get(stage, ""))) is not None:
                self._open[stage].set_attribute("flux_pulid.cache_hit", hit)
            self._done(stage, end)
            end = start

    def _finished(self, timings: Mapping[str, float], now: int) -> None:
        encoding = max(self._denoised_at, now - _ns(timings.get("encode", 0.0)))
        self._done("decode", encoding)
        self._begin("encode", encoding)
        self._done("encode", now)

    def _break_off(self, code: str, but: tuple[str, ...] = ("queue",)) -> None:
        """End what is open, as failed."""
        for stage in [stage for stage in self._open if stage not in but]:
            _mark(self._open[stage], code)
            self._done(stage, time.time_ns())

    def _begin(self, stage: str, at: int) -> None:
        self._open[stage] = self._tracer.start_span(stage, context=self._under_job, start_time=at)

    def _done(self, stage: str, at: int) -> None:
        if (span := self._open.pop(stage, None)) is not None:
            span.end(at)


def _what_was_asked(record: JobRecord) -> dict[str, str | int]:
    """Sizes and counts. A seed, too, could be matched with a published picture, so it is left out."""
    return {
        "flux_pulid.job_id": record.id,
        "flux_pulid.api": record.api,
        "flux_pulid.width": record.width,
        "flux_pulid.height": record.height,
        "flux_pulid.num_steps": record.num_steps,
        "flux_pulid.num_outputs": record.num_outputs,
    }


def _mark(span: Span, code: str) -> None:
    """As failed. The code alone: the text of an error is for its caller, and may quote them."""
    span.set_attribute(_ERROR_TYPE, code)
    span.set_status(Status(StatusCode.ERROR, code))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
