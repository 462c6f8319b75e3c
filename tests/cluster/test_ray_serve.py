"""The server on Ray: the stock SDK, replicas that are replaced or killed under load, a full queue."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cluster.ray_server import RayServer, ray_server
from failures.books import a_request
from fakes import Script
from live_server import wait_until

CALLERS = 4
PATIENCE_S = 60.0
UPSCALE_S = 120.0  # Ray waits for half a minute before it starts one

pytestmark = [pytest.mark.release, pytest.mark.timeout(600)]


@contextmanager
def scripted(
    folder: Path, settings: dict[str, object], **arguments: object
) -> Iterator[tuple[RayServer, Script]]:
    """Two engines that obey prompts."""
    script = Script(folder / "script")
    script.folder.mkdir()
    engines = {"min_engines": 2, "max_engines": 2, "script": str(script.folder), **arguments}
    with ray_server(folder, {"profile": "tiny", **settings}, **engines) as server:
        yield server, script


class SteadyLoad:
    """Callers of v1 and v2, one call after the other; what is not answered as it should be is kept."""

    def __init__(self, server: RayServer) -> None:
        self._server = server
        self._is_over = threading.Event()
        self.done: list[float] = []  # how long each took
        self.wrong: list[str] = []

    @contextmanager
    def running(self) -> Iterator[SteadyLoad]:
        with ThreadPoolExecutor(2 * CALLERS) as pool:
            for number in range(CALLERS):
                pool.submit(self._call_again_and_again, self._v1, number)
                pool.submit(self._call_again_and_again, self._v2, number)
            try:
                wait_until(lambda: len(self.done) + len(self.wrong) > 2 * CALLERS, PATIENCE_S)
                yield self
                self.go_on()
            finally:
                self._is_over.set()

    def go_on(self) -> None:
        """Until each caller has had an answer more."""
        target = len(self.done) + 2 * CALLERS
        wait_until(lambda: len(self.done) >= target or bool(self.wrong), PATIENCE_S)

    def _call_again_and_again(self, call, number: int) -> None:
        with self._server.new_client() as client:
            seed = 1000 * number
            while not self._is_over.is_set():
                seed += 1
                started = time.monotonic()
                try:
                    if (fault := call(client, seed)) is not None:
                        self.wrong.append(fault)
                except Exception as exc:
                    self.wrong.append(repr(exc))
                self.done.append(time.monotonic() - started)

    def _v1(self, client: httpx.Client, seed: int) -> str | None:
        answer = client.post("/v1/flux-pulid", json=a_request("slow 0.1 s per step", seed=seed))
        return None if answer.status_code == 200 and answer.content[:4] == b"\x89PNG" else answer.text

    def _v2(self, client: httpx.Client, seed: int) -> str | None:
        answer = client.post("/v2/flux-pulid", json=a_request("slow 0.1 s per step", seed=seed))
        if answer.status_code != 200:
            return answer.text
        job = ended(client, answer.json()["request_id"])
        if job["status"] != "COMPLETED":
            return str(job)
        picture = client.get(job["output"])
        return None if picture.status_code == 200 else picture.text


def ended(client: httpx.Client, job_id: str) -> dict[str, str]:
    """The job, once it has ended; each look must be answered."""
    last = time.monotonic() + PATIENCE_S
    while time.monotonic() < last:
        answer = client.get(f"/v2/requests/{job_id}")
        if answer.status_code != 200 or answer.json()["status"] in ("COMPLETED", "FAILED"):
            return {"status": answer.text, **answer.json()}
        time.sleep(0.1)
    return {"status": "never ended"}


def test_engines_are_replaced_killed_and_full(tmp_path: Path, capsys) -> None:
    """One cluster for all of it: a start takes half a minute."""
    with scripted(tmp_path, {"max_queued_jobs": 8}) as (server, script):
        one_after_the_other(server, "engine", signal.SIGTERM, capsys)
        assert not [line for line in server.errors() if "worker died" in line]
        an_engine_is_killed(server, script)
        a_full_queue_refuses(server)
        one_after_the_other(server, "front", signal.SIGTERM, capsys)


def one_after_the_other(server: RayServer, deployment: str, number: int, capsys) -> None:
    load = SteadyLoad(server)
    with load.running():
        for pid in list(server.replicas(deployment)):
            server.replace(deployment, pid, number)
            load.go_on()
    with capsys.disabled():
        sys.stdout.write(
            f"\n{deployment}: {len(load.done)} calls, the longest {max(load.done):.1f} s, "
            f"wrong: {load.wrong[:3]}\n"
        )
    assert load.wrong == []


def an_engine_is_killed(server: RayServer, script: Script) -> None:
    """Its job is painted by the other."""
    answer = server.client.post("/v2/flux-pulid", json=a_request("slow 0.5 s per step", num_steps=6))
    job_id = answer.json()["request_id"]
    assert script.wait_for(lambda: script.steps.get(job_id, 0) > 0)
    [worker] = [line["pid"] for line in script.lines("admitted") if line["job"] == job_id]
    [pid] = [
        pid
        for pid, replica in server.replicas("engine").items()
        if worker in {child.pid for child in replica.children()}
    ]
    server.replace("engine", pid, signal.SIGKILL)
    assert ended(server.client, job_id)["status"] == "COMPLETED"
    assert len([line for line in script.lines("admitted") if line["job"] == job_id]) == 2


def a_full_queue_refuses(server: RayServer) -> None:
    """Two engines have four jobs, and eight more may wait."""
    body = a_request("slow 0.5 s per step", num_steps=2)
    answers = [server.client.post("/v2/flux-pulid", json=body) for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers["retry-after"] for answer in refused} == {"10"}
    assert {answer.headers["x-request-id"] for answer in refused} == {
        answer.json()["request_id"] for answer in refused
    }
    for answer in answers:
        if answer.status_code == 200:
            assert ended(server.client, answer.json()["request_id"])["status"] == "COMPLETED"


def test_two_front_ends_over_one_database_are_replaced(tmp_path: Path, database: str, capsys) -> None:
    (tmp_path / "shared").mkdir()
    shared = {"database_url": database, "media_url": f"file://{tmp_path}/shared"}
    with scripted(tmp_path, shared, front_ends=2) as (server, _):
        one_after_the_other(server, "front", signal.SIGTERM, capsys)
        one_after_the_other(server, "engine", signal.SIGTERM, capsys)
        a_front_end_is_killed(server)


def test_more_work_than_one_engine_has_room_for_starts_another(tmp_path: Path) -> None:
    with scripted(tmp_path, {}, min_engines=1) as (server, script):
        assert server.running("engine") == 1
        body = a_request("slow 1 s per step", num_steps=20)
        jobs = [server.client.post("/v2/flux-pulid", json=body).json()["request_id"] for _ in range(12)]
        wait_until(lambda: len(script.lines("loading")) == 2, UPSCALE_S, server.explain)
        wait_until(lambda: len({line["pid"] for line in script.lines("admitted")}) == 2, UPSCALE_S)
        for job_id in jobs:
            assert server.client.delete(f"/v2/requests/{job_id}").status_code == 200


def a_front_end_is_killed(server: RayServer) -> None:
    """What it had accepted is done by the other."""
    body = a_request("slow 0.3 s per step", num_steps=3)
    jobs = [server.client.post("/v2/flux-pulid", json=body).json()["request_id"] for _ in range(12)]
    pid = min(server.replicas("front"))
    server.replace("front", pid, signal.SIGKILL)
    assert {ended(server.client, job_id)["status"] for job_id in jobs} == {"COMPLETED"}
