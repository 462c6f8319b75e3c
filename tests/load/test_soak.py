"""Four clients that do everything a client does, for a while: no errors, and no memory that stays."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from live_server import ServerProcess, faceless, portrait

CLIENTS = 4
GROWTH_MB = 50.0
PATIENCE_S = 60.0


class Client:
    """Goes round: a picture, a job, mistakes; never the same request twice."""

    def __init__(self, http: httpx.Client, number: int) -> None:
        self._http = http
        self._seeds = itertools.count(1_000_000 * number)
        self._photos = itertools.cycle([portrait(name) for name in ("ardern", "obama", "collins")])
        self.answers: Counter[str] = Counter()

    def work_until(self, moment: float) -> None:
        tasks = itertools.cycle([self.picture, self.job, self.mistakes])
        while time.monotonic() < moment:
            next(tasks)()

    def picture(self) -> None:
        response = self._http.post("/v1/flux-pulid", json=self._request())
        self._note("picture", response, 200)

    def job(self) -> None:
        submitted = self._http.post("/v2/flux-pulid", json=self._request(num_outputs=2))
        self._note("submit", submitted, 200)
        urls = submitted.json()
        deadline = time.monotonic() + PATIENCE_S
        while self._http.get(urls["status_url"]).json()["status"] != "COMPLETED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for url in self._http.get(urls["response_url"]).json()["output"]:
            self._note("download", self._http.get(url), 200)
        self._note("delete", self._http.delete(f"/v2/requests/{urls['request_id']}"), 200)

    def mistakes(self) -> None:
        self._note("range", self._http.post("/v1/flux-pulid", json=self._request(num_steps=99)), 400)
        self._note(
            "no face", self._http.post("/v1/flux-pulid", json=self._request(main_face_image=faceless())), 400
        )
        self._note("nonsense", self._http.post("/v1/flux-pulid", content=b"{"), 400)
        self._note("unknown", self._http.get(f"/v2/requests/{'0' * 32}"), 404)

    def _request(self, **changes: object) -> dict[str, object]:
        seed = next(self._seeds)
        request = {
            "main_face_image": next(self._photos),
            "prompt": f"portrait number {seed}",
            "width": 256,
            "height": 256,
            "num_steps": 1,
            "seed": seed,
        }
        return request | changes

    def _note(self, what: str, response: httpx.Response, expected: int) -> None:
        self.answers[what] += 1
        assert response.status_code == expected, f"{what}: {response.status_code} {response.text[:300]}"


def soak(server: ServerProcess, key: str, seconds: float) -> Counter[str]:
    """Let all clients work for so long; what they did."""
    with server.new_client(key) as http, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [Client(http, number) for number in range(1, CLIENTS + 1)]
        moment = time.monotonic() + seconds
        for done in [pool.submit(client.work_until, moment) for client in clients]:
            done.result()
    return sum((client.answers for client in clients), Counter())


def settled_memory_mb(server: ServerProcess) -> float:
    """Of the server and its workers, seen a few times after the last answer."""
    samples = []
    for _ in range(5):
        time.sleep(0.1)
        samples.append(server.memory_mb())
    return statistics.median(samples)


def check_memory(
    server: ServerProcess, key: str, seconds: float, warm_up_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    soak(server, key, warm_up_s)
    before = settled_memory_mb(server)
    answers = soak(server, key, seconds)
    growth = settled_memory_mb(server) - before
    with capsys.disabled():
        sys.stdout.write(
            f"\nsoak of {seconds:g} s: {dict(answers)}; {before:.0f} MB grew by {growth:+.1f} MB\n"
        )
    assert growth < GROWTH_MB


@pytest.mark.release
def test_ten_seconds_of_everything_leave_no_memory_behind(server, crowd_key, capsys):
    check_memory(server, crowd_key, seconds=10, warm_up_s=4, capsys=capsys)


@pytest.mark.release
def test_a_minute_of_everything_leaves_no_memory_behind(server, crowd_key, capsys):
    check_memory(server, crowd_key, seconds=60, warm_up_s=15, capsys=capsys)
