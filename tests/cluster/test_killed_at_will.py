"""Two servers, four workers, one database: whoever is killed, each accepted job ends once."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from cluster.front_ends import LEASE_S, FrontEnds, front_ends
from failures.books import a_request
from fakes import Script

JOBS = 200
STEPS = 12  # of 0.05 s: all four workers are busy all the time, so a kill meets a job
KILL_EVERY_S = 1.5
A_JOB_S = 3.0  # the longest, with room for a busy machine
PATIENCE_S = 240.0

pytestmark = [pytest.mark.release, pytest.mark.timeout(600)]


class Watcher(threading.Thread):
    """Since when each job of an owner that is dead has been PROCESSING, and which ends it ever saw."""

    def __init__(self, ends: FrontEnds) -> None:
        super().__init__(daemon=True)
        self._ends = ends
        self._since: dict[tuple[str, str], float] = {}  # by job and lease
        self.longest_s = 0.0
        self.results: dict[str, set[tuple[str, str]]] = {}  # by job: state and media id of its end
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            self.look()

    def look(self) -> None:
        now = time.monotonic()
        rows = self._ends.rows()
        for job_id, row in rows.items():
            if row["state"] in ("COMPLETED", "FAILED"):
                self.results.setdefault(job_id, set()).add((row["state"], row["media_id"]))
        running = {
            (job_id, str(row["media_id"])) for job_id, row in rows.items() if row["state"] == "PROCESSING"
        }
        self._since = {lease: self._since.get(lease, now) for lease in running}
        self.longest_s = max([self.longest_s, *(now - since for since in self._since.values())])


class Stream(threading.Thread):
    """Submits jobs to whichever server takes them."""

    def __init__(self, ends: FrontEnds) -> None:
        super().__init__(daemon=True)
        self._ends = ends
        self.accepted: dict[str, str] = {}  # prompt, by id

    def run(self) -> None:
        for number in range(JOBS):
            prompt = f"portrait {number}, slow 0.05 s per step"
            while (job_id := self._submit(prompt, seed=number)) is None:
                time.sleep(0.1)
            self.accepted[job_id] = prompt
            time.sleep(0.05)

    def _submit(self, prompt: str, *, seed: int) -> str | None:
        server = random.choice(list(self._ends.servers.values()))
        if not server.url:
            return None
        try:
            answer = httpx.post(
                f"{server.url}/v2/flux-pulid",
                json=a_request(prompt, seed=seed, num_steps=STEPS),
                timeout=10,
                trust_env=False,
            )
        except httpx.TransportError:
            return None
        return str(answer.json()["request_id"]) if answer.status_code == 200 else None


def kill_one(ends: FrontEnds, chance: random.Random) -> str:
    """A server or a worker, which comes back; a server after a while, by its supervisor. Or freeze one."""
    supervise(ends)
    name = chance.choice(list(ends.servers))
    workers = ends.workers(name)
    server = ends.servers[name]
    fate = chance.random()
    if workers and fate < 0.5:
        chance.choice(workers).kill()
        return "worker"
    if fate < 0.7:  # its workers paint on, and the other server takes up what they have
        server.signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 1.5)
        server.signal(signal.SIGCONT)
        return "server, frozen"
    server.kill()
    server.client.close()
    if chance.random() < 0.5:
        time.sleep(LEASE_S * 1.5)  # the other one takes up its jobs
    ends.start(name)
    return "server"


def supervise(ends: FrontEnds) -> None:
    """A server whose workers have died four times gives up."""
    for name, server in list(ends.servers.items()):
        if server.exit_code is not None:
            server.client.close()
            ends.start(name)


def test_no_job_is_lost_and_none_has_two_results(tmp_path: Path, database: str, capsys) -> None:
    chance = random.Random(7)
    (tmp_path / "script").mkdir()
    script = Script(tmp_path / "script")
    with front_ends(tmp_path, database, script, max_queued_jobs=300) as ends:
        watcher, stream = Watcher(ends), Stream(ends)
        watcher.start()
        stream.start()
        kills = Counter[str]()
        while stream.is_alive():
            time.sleep(KILL_EVERY_S)
            kills[kill_one(ends, chance)] += 1
        deadline = time.monotonic() + PATIENCE_S
        while any(row["state"] in ("QUEUED", "PROCESSING") for row in ends.rows().values()):
            assert time.monotonic() < deadline
            supervise(ends)
            time.sleep(0.2)
        supervise(ends)
        watcher.look()
        watcher.done.set()
        watcher.join()
        rows = ends.rows()
        client = ends.servers["one"].client
        painted = [job for job, row in rows.items() if row["state"] == "COMPLETED"]
        missing = []
        for job_id in stream.accepted:
            answer = client.get(f"/v2/requests/{job_id}").json()
            if answer["status"] == "COMPLETED" and client.get(answer["output"]).status_code != 200:
                missing.append(job_id)
        failed = Counter(str(row["error_code"]) for row in rows.values() if row["state"] == "FAILED")
        bodies = ends.shared_files("bodies")
        with capsys.disabled():
            sys.stdout.write(
                f"\n{len(stream.accepted)} jobs accepted, {len(painted)} completed, failed: {dict(failed)}, "
                f"kills: {dict(kills)}, tries: {Counter(row['tries'] for row in rows.values())}, longest in "
                f"PROCESSING under one lease: {watcher.longest_s:.1f} s, bodies left: {len(bodies)}\n"
            )
        assert set(stream.accepted) <= set(rows)
        assert missing == []
        assert set(failed) <= {"interrupted", "engine_failed"}
        assert all(len(results) == 1 for results in watcher.results.values()), json.dumps(
            {job: sorted(results) for job, results in watcher.results.items() if len(results) > 1}
        )
        assert watcher.longest_s < LEASE_S + 1.0 + A_JOB_S
