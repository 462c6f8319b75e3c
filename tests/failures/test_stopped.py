"""SIGTERM and Ctrl-C with work under way: what runs is finished, what waits is kept, in time."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from failures.books import Books, Undisturbed, a_request, status_of
from fakes import Script
from live_server import ServerProcess, live_server, still_running, wait_until

Publish = Callable[[str, Books], None]


def test_sigterm_finishes_what_runs_keeps_what_waits_and_takes_nothing_new(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    waiting: list[httpx.Response] = []
    with live_server(tmp_path / "data", scripted=gated_script, drain_s=30, undisturbed=False) as server:
        running = books.submit(server.client, "runs", seed=1)
        gated_script.run_steps(1)
        assert gated_script.wait_for(lambda: gated_script.steps.get(running) == 1)
        for seed in (2, 3):
            books.submit(server.client, "waits", seed=seed)
        with server.new_client() as other:
            caller = threading.Thread(
                target=lambda: waiting.append(other.post("/v1/flux-pulid", json=a_request("waits, too")))
            )
            caller.start()
            wait_until(lambda: calls_of_v1(server.client) == 1, 10, server.explain)

            server.signal(signal.SIGTERM)
            wait_until(lambda: server.client.get("/ready").status_code == 503, 1, server.explain)
            for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
                refused = server.client.post(path, json=a_request("too late"))
                assert refused.status_code == 503
                assert refused.headers["retry-after"].isdecimal()
                assert "going down" in refused.json()["error"]
            caller.join(5)
            assert [answer.status_code for answer in waiting] == [503]
            assert status_of(server.client, running) == "PROCESSING"
        gated_script.open_gate()
        assert server.wait(20) == 0
        assert list(gated_script.steps) == [running], "nothing else was begun"
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
    publish("SIGTERM with one job running and two waiting", books)
    assert books.all_is_well, str(books)
    assert gated_script.prepared.count("runs") == 1, "it was finished before the end"


def calls_of_v1(client: httpx.Client) -> int:
    """Accepted ones, by what /metrics says."""
    (line,) = re.findall(r'flux_pulid_jobs_submitted_total{api="v1"} (.+)', client.get("/metrics").text) or [
        "0"
    ]
    return int(float(line))


def interrupt_twice(server: ServerProcess) -> None:
    """Ctrl-C, and again while it drains."""
    server.signal(signal.SIGINT)
    wait_until(lambda: server.client.get("/ready").status_code == 503, 1, server.explain)
    server.signal(signal.SIGINT)


@pytest.mark.release
def test_a_job_goes_on_after_ctrl_c_twice_and_after_a_drain_that_was_too_short(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        job_id = books.submit(server.client, "long", num_steps=20)
        with leaving_nothing(server, job_id):
            interrupt_twice(server)
            for _ in range(15):  # the current step is waited for, and no other
                gated_script.run_steps(1)
                time.sleep(0.1)
            assert server.wait(5) == 130
            assert gated_script.steps[job_id] < 15
    drain_s = 2
    with (
        live_server(tmp_path / "data", scripted=gated_script, undisturbed=False, drain_s=drain_s) as server,
        leaving_nothing(server, job_id),
    ):
        started = time.monotonic()
        assert server.terminate() in (0, 143)  # in the middle of a step without end
        assert time.monotonic() - started < drain_s + 1
    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
    publish("Ctrl-C twice, then SIGTERM in a step without end", books)
    assert books.all_is_well, str(books)
    assert gated_script.prepared.count("long") == 3, "it was not interrupted twice"


class Caller(threading.Thread):
    """One call of v1 that waits for its answer."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self._client = server.new_client()
        self.answers: list[httpx.Response] = []
        self.start()

    def run(self) -> None:
        with self._client:
            self.answers.append(self._client.post("/v1/flux-pulid", json=a_request("a call")))

    def was_told_to_come_again(self) -> bool:
        self.join(10)
        (answer,) = self.answers
        body = answer.json()
        return (
            answer.status_code == 503
            and answer.headers["retry-after"].isdecimal()
            and answer.headers["x-request-id"] == body["request_id"]
            and "stopped before" in body["error"]
        )


@pytest.mark.parametrize("ending", ["a drain that is too short", "Ctrl-C twice"])
def test_a_call_of_v1_that_is_open_at_the_end_is_told_so(tmp_path: Path, gated_script: Script, ending: str):
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False, drain_s=3) as server:
        caller = Caller(server)
        assert gated_script.wait_for(lambda: gated_script.admitted != {})
        if ending == "Ctrl-C twice":
            interrupt_twice(server)
        else:
            server.signal(signal.SIGTERM)
        assert caller.was_told_to_come_again()
        gated_script.open_gate()
        assert server.wait(10) in (0, 130)


def test_a_call_that_is_still_being_sent_at_the_end_is_told_so(tmp_path: Path, script: Script):
    with live_server(tmp_path / "data", scripted=script, undisturbed=False, drain_s=2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as call:
            call.sendall(b"POST /v2/flux-pulid HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert server.is_ready()  # asked later, so it has read the head by now
            server.signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: call.recv(10_000), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: 10" in head
        assert "going down" in json.loads(body)["error"]
        assert server.wait(10) == 0


def test_a_signal_to_the_whole_process_group_costs_a_job_nothing(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    """As from a supervisor that knows no better: workers end with the server, and once more the next time."""
    books = Books()
    job_id = ""
    for _ in range(2):
        with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
            job_id = job_id or books.submit(server.client)
            wait_until(lambda: status_of(server.client, job_id) == "PROCESSING", 20, server.explain)  # noqa: B023
            for _ in range(2):
                os.killpg(server.pid, signal.SIGTERM)
                time.sleep(0.05)
            assert server.wait(10) in (0, -signal.SIGTERM)  # the second may come when all is closed
    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
    publish("SIGTERM to the process group, twice in each of two lives", books)
    assert books.all_is_well, str(books)


@pytest.mark.release
def test_ctrl_c_twice_ends_a_step_without_end_in_15_seconds(tmp_path: Path, gated_script: Script):
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        endless = Books().submit(server.client, "endless")
        with leaving_nothing(server, endless):
            started = time.monotonic()
            interrupt_twice(server)
            assert server.wait(20) == 130
            assert time.monotonic() - started < 15


@contextmanager
def leaving_nothing(server: ServerProcess, running: str) -> Iterator[None]:
    """A block in which the server ends under a running job, and its worker with it."""
    wait_until(lambda: status_of(server.client, running) == "PROCESSING", 10, server.explain)
    children = server.processes()[1:]
    yield
    assert still_running(children, within_s=2) == []
