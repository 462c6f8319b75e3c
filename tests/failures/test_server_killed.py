"""kill -9 of the server, at every moment of a job: what was accepted is done by the next one."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from failures.books import Books, Undisturbed, a_request, status_of
from fakes import Script
from live_server import ServerProcess, live_server, portrait, still_running, wait_until

Publish = Callable[[str, Books], None]

SUBMITTERS = 4


def kill_and_look(server: ServerProcess) -> None:
    """SIGKILL to the server; nothing it had started is left two seconds later."""
    children = server.processes()[1:]
    assert children, "it should have had a worker"
    server.kill()
    assert still_running(children, within_s=2) == []


def test_two_kills_in_a_row_cost_neither_the_running_job_nor_those_behind_it(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        running = books.submit(server.client, "one", seed=1)
        gated_script.run_steps(2)
        assert gated_script.wait_for(lambda: gated_script.steps.get(running) == 2)  # it is in its third now
        for seed in (2, 3):
            books.submit(server.client, "others", seed=seed)
        books.submit(server.client, "just accepted", seed=4)
        kill_and_look(server)
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        gated_script.run_steps(1)
        assert gated_script.wait_for(lambda: len(gated_script.lines("step")) == 3)
        books.submit(server.client, "just accepted", seed=5)
        kill_and_look(server)
    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
    publish("two kills -9 with one job running and the others waiting", books)
    assert books.all_is_well, str(books)
    assert len(gated_script.lines("admitted")) == len(books.accepted) + 2, (
        "each kill should hit a running job"
    )


def test_jobs_of_several_photos_and_several_people_go_on_with_all_of_them(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    faces = [
        {"photos": [portrait("collins"), portrait("obama")], "box": [0, 0, 0.5, 1]},
        {"identity": "AAAA", "weight": 0.5},
    ]
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        books.submit(server.client, "several photos", face_images=[portrait("collins"), portrait("obama")])
        waiting = books.submit(server.client, "several people", main_face_image=None, faces=faces)
        books.submit(server.client, "no photo at all", main_face_image=None, identity="AAAA")
        assert gated_script.wait_for(lambda: len(gated_script.prepared) == 2)
        kill_and_look(server)
    photos = sorted((tmp_path / "data").rglob(f"{waiting}.photo.*"))
    assert [path.suffix for path in photos] == [".0", ".1"]
    photos[0].unlink()
    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
        assert list((tmp_path / "data").rglob("*.photo.*")) == []
    publish("kill -9 with jobs of several photos, several people and none", books)
    assert books.all_is_well, str(books)


def submit_until_broken(server: ServerProcess, books: Books, prompt: str) -> None:
    with server.new_client() as client:
        seed = 0
        while True:
            seed += 1
            try:
                books.submit(client, prompt, seed=seed, num_steps=2)
            except httpx.TransportError:
                return


def stream_into(server: ServerProcess, books: Books, enough: Callable[[], bool], name: str) -> None:
    """Submits from all sides, until `enough`; then SIGKILL with calls on their way."""
    callers = [
        threading.Thread(target=submit_until_broken, args=(server, books, f"{name}, caller {n}"))
        for n in range(SUBMITTERS)
    ]
    for caller in callers:
        caller.start()
    wait_until(enough, 20, server.explain)
    kill_and_look(server)
    for caller in callers:
        caller.join(20)


def test_in_a_stream_of_submits_every_id_that_was_returned_is_kept(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with live_server(tmp_path / "data", scripted=script, max_queued_jobs=5000, undisturbed=False) as server:
        stream_into(server, books, lambda: len(books.accepted) >= 60, "stream")
    with live_server(tmp_path / "data", scripted=script, max_queued_jobs=5000) as server:
        books.settle(server.client, undisturbed)
    publish("kill -9 in a stream of submits", books)
    assert books.all_is_well, str(books)


def test_a_job_has_three_tries_and_one_that_never_started_loses_none(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    unlucky = ""
    for life in range(3):
        with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
            unlucky = unlucky or books.submit(server.client, "unlucky")
            wait_until(lambda: status_of(server.client, unlucky) == "PROCESSING", 20, server.explain)  # noqa: B023
            # Rows are written in order: when that of a job without parameters is there, so is the try.
            server.client.post("/v2/flux-pulid", json={}).raise_for_status()
            if life == 2:
                for seed in range(3):
                    books.submit(server.client, "behind it", seed=seed)
            kill_and_look(server)
    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        books.settle(server.client, undisturbed)
    publish("three kills -9 in a row over the same job", books)
    assert books.nothing_is_lost, str(books)
    assert books.ends.pop(unlucky) == "FAILED"
    assert "interrupted 3 times" in books.errors[unlucky]
    assert list(books.ends.values()) == ["COMPLETED"] * 3, str(books)


def test_a_call_of_v1_breaks_with_its_server_and_is_not_made_again(tmp_path: Path, gated_script: Script):
    ends: list[object] = []

    def call(server: ServerProcess, prompt: str) -> None:
        with server.new_client() as client:
            try:
                ends.append(client.post("/v1/flux-pulid", json=a_request(prompt)).status_code)
            except httpx.TransportError as exc:
                ends.append(type(exc))

    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        callers = [threading.Thread(target=call, args=(server, prompt)) for prompt in ("first", "second")]
        for caller in callers:
            caller.start()
        # One has begun and the other one is prepared behind it.
        assert gated_script.wait_for(lambda: len(gated_script.prepared) == 2)
        assert gated_script.wait_for(lambda: len(gated_script.admitted) == 1)
        kill_and_look(server)
        for caller in callers:
            caller.join(20)
    assert all(isinstance(end, type) and issubclass(end, httpx.TransportError) for end in ends), ends
    assert len(ends) == 2

    gated_script.open_gate()
    with live_server(tmp_path / "data", scripted=gated_script) as server:
        later = Books()
        later_id = later.submit(server.client, "later")
        wait_until(lambda: status_of(server.client, later_id) == "COMPLETED", 20, server.explain)
        (broken,) = set(gated_script.admitted) - {later_id}
        answer = server.client.get(f"/v1/requests/{broken}")
        assert (answer.status_code, answer.json()["status"]) == (422, "FAILED")
        assert "stopped before" in answer.json()["error"]
    assert sorted(gated_script.prepared) == ["first", "later", "second"], "each was read once"
    assert states_in(tmp_path / "data") == ["COMPLETED", "FAILED", "FAILED"]


def states_in(data_dir: Path) -> list[str]:
    """Of all records, after the server's end."""
    with closing(sqlite3.connect(data_dir / "jobs.sqlite3")) as connection:
        return sorted(state for (state,) in connection.execute("SELECT state FROM jobs"))


@pytest.mark.release
def test_ten_kills_at_any_moment_lose_nothing(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    for life in range(10):
        with live_server(
            tmp_path / "data", scripted=script, max_queued_jobs=10_000, undisturbed=False
        ) as server:
            until = time.monotonic() + random.uniform(0.05, 0.8)
            stream_into(server, books, lambda: time.monotonic() > until, f"life {life}")  # noqa: B023
    with live_server(tmp_path / "data", scripted=script, max_queued_jobs=10_000) as server:
        books.settle(server.client, undisturbed)
    publish("ten kills -9 at any moment of a stream of submits", books)
    assert books.nothing_is_lost, str(books)
    assert all("interrupted 3 times" in error for error in books.errors.values()), str(books)


@pytest.mark.release
def test_the_tiny_model_paints_the_same_bytes_after_a_kill(tmp_path: Path):
    request = a_request("in red light", num_steps=6, main_face_image=portrait())
    with live_server(tmp_path / "calm", profile="tiny") as server:
        right = server.client.post("/v1/flux-pulid", json=request).raise_for_status().content
    with live_server(tmp_path / "data", profile="tiny", undisturbed=False) as server:
        job_id = server.client.post("/v2/flux-pulid", json=request).raise_for_status().json()["request_id"]
        wait_until(lambda: status_of(server.client, job_id) == "PROCESSING", 20, server.explain)
        kill_and_look(server)
    with live_server(tmp_path / "data", profile="tiny") as server:
        wait_until(lambda: status_of(server.client, job_id) == "COMPLETED", 30, server.explain)
        output = server.client.get(f"/v2/requests/{job_id}").json()["output"]
        assert server.client.get(output).content == right
