"""Traces of real server processes, as a collector gets them: spans, parents, times, and nothing personal."""

import http.server
import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest

from fakes import SECRET
from live_server import PHOTOS, portrait, wait_until
from pulid.errors import SetupError
from server.tracing import tracing_asked_for

PROMPT = "an unmistakable zebra in a tutu"
KEY = "alice-key-that-nobody-knows"
PHOTO_PATH = "/private-album/ardern.jpg"
SMALL = {"prompt": PROMPT, "width": 256, "height": 256, "num_steps": 3, "seed": 4711}
CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"
STAGES = ["fetch", "decode_photo", "face", "text", "denoise", "decode", "encode"]


@pytest.fixture
def album():
    """A host that has a photo; yields its host:port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write((PHOTOS / "ardern.jpg").read_bytes())

        def log_message(self, *args):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever)
    thread.start()
    yield f"127.0.0.1:{host.server_port}"
    host.shutdown()
    thread.join()
    host.server_close()


def body(photo=None, **changes):
    return SMALL | {"main_face_image": photo or portrait()} | changes


def submitted(server, **changes):
    """The id of a v2 job."""
    return server.client.post("/v2/flux-pulid", json=body(**changes)).json()["request_id"]


def ended(server, job_id, timeout_s=20.0):
    """The last status of a job."""
    wait_until(lambda: word_of(server, job_id) in ("COMPLETED", "FAILED"), timeout_s, server.explain)
    return word_of(server, job_id)


def word_of(server, job_id):
    return server.client.get(f"/v2/requests/{job_id}/status").json()["status"]


def within(inner, outer):
    return outer.start <= inner.start <= inner.end <= outer.end


def test_a_picture_by_the_real_engine_is_one_trace_from_call_to_file(collector, serving, album):
    photo = f"http://album.example{PHOTO_PATH}"
    before = time.time_ns()
    hosts = {"album.example": album}
    with serving(profile="tiny", photo_hosts=hosts, api_keys=f"alice:{KEY}") as server:
        answer = server.client.post(
            "/v1/flux-pulid",
            json=body(photo),
            headers={"x-api-key": KEY, "traceparent": TRACEPARENT, "tracestate": "album=holidays"},
        )
        assert answer.status_code == 200, answer.text
        figures = answer.headers
    after = time.time_ns()

    request, job = collector.one("POST /v1/flux-pulid"), collector.one("job")
    assert (request.trace_id, request.parent_id) == (CALLERS_TRACE, CALLERS_SPAN)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/flux-pulid",
        "http.response.status_code": 200,
        "flux_pulid.request_id": figures["x-request-id"],
    }
    assert collector.below(request) == [job]
    job_id = job.attributes.pop("flux_pulid.job_id")
    assert len(job_id) == 32
    assert job.attributes == {
        "flux_pulid.api": "v1",
        "flux_pulid.width": 256,
        "flux_pulid.height": 256,
        "flux_pulid.num_steps": 3,
        "flux_pulid.num_outputs": 1,
        "flux_pulid.state": "COMPLETED",
        "flux_pulid.tries": 1,
    }
    below = collector.below(job)
    queue = collector.one("queue")
    stages = [span for span in below if span.name != "queue"]
    assert [span.name for span in stages] == STAGES
    assert {span.trace_id for span in collector.spans} == {CALLERS_TRACE}
    assert len(collector.spans) == len(STAGES) + 3
    assert not any(span.has_failed for span in collector.spans)

    assert before <= request.start < request.end <= after
    assert within(job, request)
    assert all(within(span, job) for span in below)
    assert all(one.end <= other.start for one, other in itertools.pairwise(stages))
    assert queue.start == job.start
    denoise = collector.one("denoise")
    assert queue.end == denoise.start
    # What the caller was told is what the trace tells: the time of a picture is steps, decoding and saving.
    told = (collector.one("encode").end - denoise.start) / 1e9
    assert told == pytest.approx(float(figures["x-generation-time"]), abs=0.05)
    assert all(collector.one(name).seconds > 0 for name in STAGES)
    assert collector.one("face").attributes == {"flux_pulid.cache_hit": False}
    assert {span.resource["service.name"] for span in collector.spans} == {"flux-pulid-server"}

    sent = b"".join(collector.bodies)
    for secret in (PROMPT, "zebra", KEY, "alice", "album", "ardern", "holidays", "4711", str(album)):
        assert secret.encode() not in sent, secret


def test_a_v2_job_outlives_its_call_in_the_same_trace(collector, serving, script):
    with serving(scripted=script) as server:
        job_id = submitted(server, prompt="slow 0.1 s per step")
        assert ended(server, job_id) == "COMPLETED"
        server.client.delete(f"/v2/requests/{job_id}")
    request, job = collector.one("POST /v2/flux-pulid"), collector.one("job")
    assert job.parent_id == request.span_id
    assert request.parent_id == ""
    assert job.attributes["flux_pulid.job_id"] == job_id
    assert job.attributes["flux_pulid.api"] == "v2"
    assert request.end < job.end
    assert 0.2 < collector.one("denoise").seconds < job.seconds
    assert len(collector.spans) == len(STAGES) + 3  # polling and deleting make no spans


def test_a_failed_job_ends_with_its_code(collector, serving, script):
    with serving(scripted=script) as server:
        answer = server.client.post("/v1/flux-pulid", json=body(prompt="no face"))
        assert answer.status_code == 400
    job = collector.one("job")
    assert job.has_failed
    assert job.attributes["error.type"] == "no_face"
    assert job.attributes["flux_pulid.state"] == "FAILED"
    assert [span.name for span in collector.below(job)] == ["queue", "fetch"]
    request = collector.one("POST /v1/flux-pulid")
    assert request.attributes["http.response.status_code"] == 400
    assert not request.has_failed  # its caller's fault, none of the server's


def test_a_fault_of_the_engine_is_told_without_its_text(collector, serving, script):
    with serving(scripted=script, undisturbed=False) as server:
        assert server.client.post("/v1/flux-pulid", json=body(prompt="raise at step 2")).status_code == 500
        assert server.terminate() == 0
    assert collector.one("POST /v1/flux-pulid").has_failed
    denoise = collector.one("denoise")
    assert denoise.has_failed
    assert denoise.attributes == {"error.type": "engine_failed"}
    assert not collector.named("decode")
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_photo_that_is_none_ends_in_the_fetch(collector, serving, script):
    with serving(scripted=script) as server:
        answer = server.client.post("/v1/flux-pulid", json=body("bm8gcGhvdG8="))
        assert answer.status_code == 400
    assert collector.one("fetch").has_failed
    assert collector.one("fetch").attributes["error.type"] == collector.one("job").attributes["error.type"]


def test_a_cancelled_job_ends_where_it_was(collector, serving, script):
    script = replace(script, gated=True)
    with serving(scripted=script) as server:
        running = submitted(server)
        script.run_steps(1)
        assert script.wait_for(lambda: bool(script.steps))
        waiting = submitted(server)
        for job_id in (waiting, running):
            server.client.delete(f"/v2/requests/{job_id}")
        script.open_gate()
    jobs = {span.attributes["flux_pulid.job_id"]: span for span in collector.named("job")}
    assert {job.attributes["error.type"] for job in jobs.values()} == {"cancelled"}
    assert [span.name for span in collector.below(jobs[running]) if span.has_failed] == ["denoise"]
    assert [span.name for span in collector.below(jobs[waiting]) if span.has_failed] == ["queue"]


def test_a_caller_who_leaves_ends_the_trace(collector, serving, script):
    script = replace(script, gated=True)
    with serving(scripted=script) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/v1/flux-pulid", json=body(), timeout=1)
        cancelled = 'flux_pulid_jobs_ended_total{code="cancelled",state="FAILED"} 1.0'
        wait_until(lambda: cancelled in server.client.get("/metrics").text, 10, server.explain)
        script.open_gate()
    assert collector.one("job").attributes["error.type"] == "cancelled"
    assert collector.one("POST /v1/flux-pulid").attributes["http.response.status_code"] == 499


def test_each_attempt_shows_after_a_workers_death(collector, serving, script):
    with serving(scripted=script, undisturbed=False) as server:
        assert ended(server, submitted(server, prompt="crash once at step 2")) == "COMPLETED"
        assert server.terminate() == 0
    first, second = collector.named("denoise")
    assert first.attributes == {"error.type": "worker_died"}
    assert not second.has_failed
    assert [span.has_failed for span in collector.named("queue")] == [False, False]
    assert collector.named("queue")[1].start >= first.end
    job = collector.one("job")
    assert not job.has_failed
    assert job.attributes["flux_pulid.tries"] == 2


def test_a_job_that_waits_when_the_server_ends_says_so(collector, serving, script):
    with serving(scripted=script) as server:
        running = submitted(server, prompt="slow 1 s per step")
        assert script.wait_for(lambda: bool(script.admitted))
        waiting = submitted(server)
    jobs = {span.attributes["flux_pulid.job_id"]: span for span in collector.named("job")}
    assert jobs[running].attributes["flux_pulid.state"] == "COMPLETED"
    assert jobs[waiting].attributes["flux_pulid.state"] == "QUEUED"
    assert jobs[waiting].attributes["error.type"] == "server_stopped"
    assert [span.name for span in collector.below(jobs[waiting]) if span.has_failed] == ["queue"]


def test_a_refused_call_is_a_trace_without_a_job(collector, serving, script):
    with serving(scripted=script) as server:
        assert server.client.post("/v1/flux-pulid", json=body(width=1)).status_code == 400
        assert server.client.post("/no/such/address").status_code == 404
        server.client.get("/metrics")
    assert [span.name for span in collector.spans] == ["POST /v1/flux-pulid", "POST"]
    assert len({span.trace_id for span in collector.spans}) == 2


def test_a_v2_body_that_is_not_valid_fails_in_its_trace(collector, serving, script):
    with serving(scripted=script) as server:
        assert ended(server, submitted(server, width=1)) == "FAILED"
    job = collector.one("job")
    assert job.has_failed
    assert job.parent_id == collector.one("POST /v2/flux-pulid").span_id


def test_the_usual_variables_are_followed(collector, serving, script, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "portraits")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-token=abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with serving(scripted=script) as server:
        server.client.post("/v1/flux-pulid", json=body())
        server.client.post("/v1/flux-pulid", json=body(), headers={"traceparent": TRACEPARENT})
    assert {span.trace_id for span in collector.spans} == {CALLERS_TRACE}
    assert {span.resource["service.name"] for span in collector.spans} == {"portraits"}
    assert all(headers["x-collector-token"] == "abc" for headers in collector.headers)


def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(collector, serving, script):
    headers = ["nonsense", f"00-{'0' * 32}-{CALLERS_SPAN}-01", f"00-{CALLERS_TRACE}-{'0' * 16}-01", "00-", ""]
    with serving(scripted=script) as server:
        for header in headers:
            answer = server.client.post("/v1/flux-pulid", json=body(), headers={"traceparent": header})
            assert answer.status_code == 200
    requests = collector.named("POST /v1/flux-pulid")
    assert [span.parent_id for span in requests] == [""] * len(headers)
    assert len({span.trace_id for span in requests} - {CALLERS_TRACE}) == len(headers)


def test_a_collector_that_does_not_answer_costs_no_picture_and_no_time(serving, script, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # "discard": nobody listens
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with serving(scripted=script, undisturbed=False) as server:
        assert server.client.post("/v1/flux-pulid", json=body()).status_code == 200
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 9
        assert PROMPT not in server.output()


def test_without_the_variables_there_are_no_traces():
    assert tracing_asked_for({}) is None
    assert tracing_asked_for({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert tracing_asked_for(asked | {"OTEL_SDK_DISABLED": "true"}) is None
    assert tracing_asked_for(asked | {"OTEL_TRACES_EXPORTER": "none"}) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_what_the_extra_cannot_do_is_refused_by_name(variable, value):
    asked = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces", variable: value}
    with pytest.raises(SetupError, match=f"{variable} is {value}"):
        tracing_asked_for(asked)


def test_traces_without_the_extra_end_the_start_with_its_name(collector, tmp_path):
    without = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; from server.cli.main import app; app()",
        "serve",
        "--profile=tiny",
        "--port=0",
        f"--data-dir={tmp_path}",
    )
    done = subprocess.run([sys.executable, "-c", *without], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces" in done.stderr
    assert "flux-pulid-server[otel]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_asked_for_traces_never_loads_its_sdk():
    look = (
        "import sys, server.app, server.cli.main; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'server.spans'))])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
