"""kill -9 and SIGSTOP of a worker: its jobs are done again, by the next worker, beside a server that lives.

And photos that kill: one fails its own job only, and too many of them end the server in words.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from failures.books import Books, Undisturbed, status_of
from failures.hard_times import hard_server
from fakes import Script
from live_server import ServerProcess, live_server, wait_until

Publish = Callable[[str, Books], None]


def kill_worker(script: Script) -> None:
    os.kill(script.pids[-1], signal.SIGKILL)


def wait_for_death(server: ServerProcess, deaths: int) -> None:
    wait_until(lambda: server.output().count("worker died") >= deaths, 20, server.explain)


def test_a_worker_may_die_idle_in_a_step_and_while_it_prepares(
    tmp_path: Path, gated_script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with live_server(tmp_path / "data", scripted=gated_script, undisturbed=False) as server:
        kill_worker(gated_script)
        wait_for_death(server, 1)
        assert not server.is_ready(), "there is no worker"
        server.wait_until_ready(20)

        stepping = books.submit(server.client, "steps", seed=1)
        gated_script.run_steps(1)
        assert gated_script.wait_for(lambda: gated_script.steps.get(stepping) == 1)
        kill_worker(gated_script)
        wait_for_death(server, 2)
        wait_until(lambda: status_of(server.client, stepping) == "PROCESSING", 20, server.explain)

        books.submit(server.client, "slow 0.5 s while preparing", seed=2)
        gated_script.open_gate()
        assert gated_script.wait_for(lambda: "slow 0.5 s while preparing" in gated_script.prepared)
        kill_worker(gated_script)
        wait_for_death(server, 3)
        books.settle(server.client, undisturbed)
        assert server.is_ready()
        assert len(set(gated_script.pids)) == 4, "a worker for each death, and the first"
    publish("three kills -9 of the worker", books)
    assert books.all_is_well, str(books)
    assert gated_script.prepared.count("steps") >= 2, "it was not killed in the middle of that job"
    assert gated_script.prepared.count("slow 0.5 s while preparing") == 2


def test_a_worker_that_dies_while_it_saves_leaves_nothing_half_written(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    media = tmp_path / "data" / "media"
    with live_server(tmp_path / "data", scripted=script, undisturbed=False) as server:
        books.submit(server.client, "large", width=1536, height=1536, num_steps=1)
        deadline = time.monotonic() + 20
        while not os.listdir(media):  # noqa: PTH208  # the moment lasts some milliseconds
            assert time.monotonic() < deadline, server.explain()
        kill_worker(script)
        wait_for_death(server, 1)
        books.settle(server.client, undisturbed)
    publish("kill -9 of the worker while it saves", books)
    assert books.all_is_well, str(books)
    (folder,) = media.iterdir()
    assert [file.name for file in folder.iterdir()] == ["0.png"]


def test_a_frozen_worker_is_replaced(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with hard_server(tmp_path / "data", scripted=script, stall_floor_s=2) as server:
        frozen = books.submit(server.client, "slow 0.1 s per step", num_steps=6)
        books.submit(server.client, "behind it", seed=2)
        assert script.wait_for(lambda: script.steps.get(frozen, 0) >= 2)
        os.kill(script.pids[-1], signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_for_death(server, 1)
        assert time.monotonic() - stopped_at < 10
        assert server.client.get("/health", timeout=1).status_code == 200
        books.settle(server.client, undisturbed)
        assert "worker stalled" in server.output()
    publish("SIGSTOP of the worker", books)
    assert books.all_is_well, str(books)
    assert len(script.pids) == 2


def test_a_poison_photo_costs_its_own_job_and_four_deaths_end_the_server_in_words(
    tmp_path: Path, script: Script, undisturbed: Undisturbed, publish: Publish
):
    books = Books()
    with live_server(tmp_path / "data", scripted=script, undisturbed=False) as server:
        photo = books.submit(server.client, "crash while preparing", seed=1)
        neighbours = [books.submit(server.client, "neighbour", seed=seed) for seed in (2, 3)]
        wait_for_end(server, photo, "FAILED")
        for job_id in neighbours:
            wait_for_end(server, job_id, "COMPLETED")
        server.wait_until_ready(20)  # one poison photo does not take the server down

        step = books.submit(server.client, "crash at step 2", seed=4)
        books.submit(server.client, "neighbour", seed=5)
        code, output = server.wait(30), server.output()
    assert code == 1, output
    assert output.count("Error: ") == 1
    assert "has died 4 times" in output.splitlines()[-1]
    assert "Traceback" not in output

    with live_server(tmp_path / "data", scripted=script) as server:
        books.settle(server.client, undisturbed)
    publish("two poison photos, four deaths, a new server", books)
    assert books.nothing_is_lost, str(books)
    assert books.errors == dict.fromkeys(
        [photo, step], "The engine died twice over this request. Change the photo or the prompt."
    )


def wait_for_end(server: ServerProcess, job_id: str, state: str) -> None:
    wait_until(lambda: status_of(server.client, job_id) == state, 20, server.explain)
