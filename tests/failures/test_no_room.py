"""A full disk and no file handles: refused in words, nothing accepted is lost, and it passes."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from failures.books import Books, Undisturbed, a_request, status_of
from failures.hard_times import hard_server, limits_of, seen_by
from fakes import Script
from live_server import ServerProcess, wait_until

Publish = Callable[[str, Books], None]

DISK_MB = 24
CONNECTIONS = 80


def refused_in_words(answer: httpx.Response) -> bool:
    """503 with a hint, in the one shape of errors."""
    hint, body = answer.headers.get("retry-after", ""), answer.json()
    return answer.status_code == 503 and hint.isdecimal() and {*body} == {"error", "request_id"}


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte is left on the disk that this folder is on."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.release  # mounts a small disk, which not every machine allows
def test_a_full_disk_refuses_what_is_new_and_delays_what_runs(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    data = tmp_path / "data"
    with hard_server(data, scripted=gated_script, disk_mb=DISK_MB, min_free_bytes=0) as server:
        done = books.submit(server.client, "done before", seed=1)
        gated_script.run_steps(3)
        wait_until(lambda: status_of(server.client, done) == "COMPLETED", 20, server.explain)
        running = books.submit(server.client, "runs", seed=2)
        wait_until(lambda: status_of(server.client, running) == "PROCESSING", 20, server.explain)
        books.submit(server.client, "waits", seed=3)
        with full(seen_by(server, data)):
            for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
                assert refused_in_words(server.client.post(path, json=a_request("new")))
            output = server.client.get(f"/v2/requests/{done}").json()["output"]
            assert server.client.get(output).status_code == 200, "reading goes on"
            assert server.client.get("/health").status_code == 200
            gated_script.run_steps(3)  # its picture finds no room
            assert gated_script.wait_for(lambda: gated_script.steps.get(running) == 3)
            wait_until(lambda: status_of(server.client, running) == "QUEUED", 10, server.explain)
        gated_script.open_gate()
        books.submit(server.client, "new again", seed=4)
        books.settle(server.client, undisturbed)
        assert server.client.get("/ready").status_code == 200
    publish("disk full while one job runs and one waits", books)
    assert books.all_is_well, str(books)


def test_files_that_may_not_grow_refuse_what_is_new_until_they_may(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    """The same for a quota, which no mount is needed for: it meets the database, too."""
    books = Books()
    data = tmp_path / "data"
    with hard_server(data, scripted=gated_script, min_free_bytes=0) as server:
        running = books.submit(server.client, "runs", seed=1)
        wait_until(lambda: status_of(server.client, running) == "PROCESSING", 20, server.explain)
        wal = data / "jobs.sqlite3-wal"
        # A row more does not fit into the log of the database; a line more fits into that of the server.
        assert server.log.stat().st_size + 8192 < wal.stat().st_size
        with limits_of(server.processes()[:1], psutil.RLIMIT_FSIZE, wal.stat().st_size):
            for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
                assert refused_in_words(server.client.post(path, json=a_request("new")))
            assert status_of(server.client, running) == "PROCESSING"
            assert os.listdir(data / "bodies")  # noqa: PTH208
            unready = server.client.get("/ready")
            assert (unready.status_code, unready.json()["reason"]) == (503, "its disk is full")
        server.wait_until_ready(10)  # it finds out itself
        gated_script.open_gate()
        books.submit(server.client, "new again", seed=2)
        books.settle(server.client, undisturbed)
    publish("files that may not grow while one job runs", books)
    assert books.all_is_well, str(books)


@pytest.mark.release  # mounts a small disk, which not every machine allows
def test_below_the_watermark_nothing_new_is_taken(tmp_path: Path, script: Script):
    data = tmp_path / "data"
    with hard_server(data, scripted=script, disk_mb=DISK_MB, min_free_bytes=DISK_MB * 2**19) as server:
        with full(seen_by(server, data)):
            unready = server.client.get("/ready")
            assert (unready.status_code, unready.json()["reason"]) == (503, "its disk is full")
            assert refused_in_words(server.client.post("/v2/flux-pulid", json=a_request()))
        assert server.client.get("/ready").status_code == 200
        assert server.client.post("/v2/flux-pulid", json=a_request()).status_code == 200


def lowest_free_handle(process: psutil.Process) -> int:
    """With no more handles than this, a process can open nothing; what it has open stays open."""
    taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}  # noqa: PTH208
    return min({*range(len(taken) + 1)} - taken)


def test_without_file_handles_calls_are_refused_in_words_and_jobs_are_kept(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with hard_server(tmp_path / "data", scripted=gated_script) as server:
        running = books.submit(server.client, "runs", seed=2)
        wait_until(lambda: status_of(server.client, running) == "PROCESSING", 20, server.explain)
        main = server.processes()[0]
        with limits_of([main], psutil.RLIMIT_NOFILE, lowest_free_handle(main)):
            for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
                assert refused_in_words(server.client.post(path, json=a_request("new")))
            assert status_of(server.client, running) == "PROCESSING"
            gated_script.open_gate()
            wait_until(lambda: status_of(server.client, running) == "COMPLETED", 10, server.explain)
        books.submit(server.client, "new again", seed=3)
        books.settle(server.client, undisturbed)
    publish("no file handles while one job runs", books)
    assert books.all_is_well, str(books)


def test_without_file_handles_a_picture_is_refused_in_words_too(tmp_path: Path, script: Script):
    with hard_server(tmp_path / "data", scripted=script) as server:
        job_id = Books().submit(server.client)
        wait_until(lambda: status_of(server.client, job_id) == "COMPLETED", 20, server.explain)
        picture = server.client.get(f"/v2/requests/{job_id}").json()["output"]
        main = server.processes()[0]
        for _ in range(2):  # the first picture of a server's life, and any other
            with limits_of([main], psutil.RLIMIT_NOFILE, lowest_free_handle(main)):
                assert refused_in_words(server.client.get(picture))
            assert server.client.get(picture).status_code == 200


def test_a_flood_of_connections_passes(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    """Fewer handles than callers: each is answered, in words, or left without an answer; then all is well."""
    books = Books()
    with hard_server(tmp_path / "data", scripted=script) as server:
        running = books.submit(server.client, "slow 0.2 s per step", num_steps=4)
        main = server.processes()[0]
        with limits_of([main], psutil.RLIMIT_NOFILE, lowest_free_handle(main) + 20), ExitStack() as open_ones:
            callers = [open_ones.enter_context(connection_to(server)) for _ in range(CONNECTIONS)]
            select.select(callers[:10], [], [], 5)
            time.sleep(0.5)  # for all others that can still be accepted
            answers = Counter(first_line(caller) for caller in callers)
            assert status_of(server.client, running) in ("QUEUED", "PROCESSING", "COMPLETED")
        assert answers["HTTP/1.1 200 OK"] >= 10
        assert answers[""] > 0, "there were enough handles for all"
        assert {*answers} <= {"HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable", ""}
        server.wait_until_ready(10)
        with server.new_client() as new:
            books.submit(new, "new again", seed=2)
            books.settle(new, undisturbed)
    publish(f"{CONNECTIONS} connections at once, {dict(answers)}", books)
    assert books.all_is_well, str(books)


def connection_to(server: ServerProcess) -> socket.socket:
    """One that has asked for /health, and stays open."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return connection


def first_line(connection: socket.socket) -> str:
    """Of the answer; "" where none has come."""
    connection.setblocking(False)
    try:
        return connection.recv(4096).decode().partition("\r\n")[0]
    except (BlockingIOError, ConnectionError):
        return ""


def test_an_engine_out_of_memory_costs_a_wait_and_twice_in_a_row_a_worker(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with hard_server(tmp_path / "data", scripted=script) as server:
        books.submit(server.client, "oom once at step 1", seed=1)
        assert script.wait_for(lambda: "oom once at step 1" in script.prepared)
        books.submit(server.client, "beside it", seed=2)
        books.settle(server.client, undisturbed)
        assert len(script.pids) == 1, "one memory fault is no reason for a new worker"

        hopeless = server.client.post("/v1/flux-pulid", json=a_request("oom"))
        assert refused_in_words(hopeless)
        assert refused_in_words(server.client.post("/v1/flux-pulid", json=a_request("oom, again")))
        started = time.monotonic()
        books.submit(server.client, "after a new worker", seed=3)
        books.settle(server.client, undisturbed)
        assert len(script.pids) == 2
        assert time.monotonic() - started < 15
        server.wait_until_ready(10)
    publish("an engine out of memory", books)
    assert books.all_is_well, str(books)
