"""What a trace may be told of a request and its job, and whether there are traces at all.

Asked for by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its relatives), never by
our settings. Where nobody asks there is no trace, and whoever would tell it something finds None.
No prompt, photo, address or key can be told: a record holds none, and nobody hands one over here.
Knows no OpenTelemetry: that is `spans.py`, imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

from pulid.errors import SetupError
from server.jobs.job import JobRecord
from server.jobs.messages import Finished, JobFailed, Prepared, Preparing, Stepped, Stepping

JobEvent = Preparing | Prepared | Stepping | Stepped | Finished | JobFailed

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class JobTrace(Protocol):
    """One job. The runner tells what happens to it, in the order in which it does."""

    def fetching(self) -> None:
        """Its photo is being brought, by network or out of base64."""

    def fetched(self) -> None: ...

    def heard(self, event: JobEvent) -> None:
        """What its worker says."""

    def requeued(self) -> None:
        """It waits for another attempt."""

    def ended(self, record: JobRecord) -> None:
        """The last word: it has ended, or the server has and the job waits on disk for the next one."""


class RequestTrace(Protocol):
    """One call."""

    def job(self, record: JobRecord) -> JobTrace:
        """The trace of the job that this call has submitted."""

    def answered(self, *, route: str, code: int, request_id: str) -> None:
        """The last word. `route` is its template, "" for an unknown address."""


class Tracing(Protocol):
    def request(self, *, method: str, traceparent: str | None) -> RequestTrace:
        """A call begins; it joins its caller's trace where `traceparent` names one."""

    def close(self) -> None:
        """Send what has not been sent, if that is quick. Blocks for a few seconds at most."""


def tracing_asked_for(environment: Mapping[str, str]) -> Tracing | None:
    """None where OpenTelemetry's variables ask for no traces. Raises SetupError where they cannot be had."""
    if not _is_asked_for(environment):
        return None
    if problem := _why_not(environment):
        raise SetupError(problem)
    from server.spans import SpanTracing

    return SpanTracing()


def _is_asked_for(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(environment.get(name) for name in _ENDPOINTS)


def _why_not(environment: Mapping[str, str]) -> str:
    endpoint = next(name for name in _ENDPOINTS if environment.get(name))
    if not (_is_installed("opentelemetry.sdk") and _is_installed("opentelemetry.exporter.otlp.proto.http")):
        return (
            f"{endpoint} asks for traces, and the extra for them is not installed. Install it with "
            f"pip install -c configs/constraints.txt 'flux-pulid-server[otel]', or unset {endpoint}."
        )
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter}; this server has otlp, and none for no traces."
    protocol = next((name for name in _PROTOCOLS if environment.get(name)), None)
    if protocol is not None and environment[protocol].strip() != _PROTOCOL:
        return (
            f"{protocol} is {environment[protocol]}; this server speaks {_PROTOCOL} alone. Unset it, and "
            "give the collector's port for OTLP over HTTP, usually 4318."
        )
    return ""


def _is_installed(package: str) -> bool:
    """`find_spec` raises where a package above it is missing."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
