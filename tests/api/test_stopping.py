"""Signals: what each does to a server in a process of its own, how long it takes, the exit code."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fakes import PATIENCE_S

PROGRAM = Path(__file__).with_name("draining_server.py")


class Server:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROGRAM.parents[2],
            env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])},
        )
        self.client = httpx.Client(base_url=self.line(), timeout=PATIENCE_S, trust_env=False)
        self.client.get("/ready")

    def line(self):
        return self.process.stdout.readline().strip()

    def painting(self):
        """A call that is answered when the work is finished; returns its thread and its answers."""
        answers = []

        def call():
            try:
                answers.append(self.client.get("/paint").status_code)
            except httpx.HTTPError:
                answers.append(None)

        thread = threading.Thread(target=call)
        thread.start()
        assert self.line() == "painting"
        return thread, answers

    def is_draining(self):
        while self.client.get("/ready").status_code == 200:
            time.sleep(0.01)

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """(exit code, seconds until then, standard output, standard error)"""
        started = time.monotonic()
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, time.monotonic() - started, out, err


@contextmanager
def running(*arguments):
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_does_nothing_ends_at_once(number, code):
    with running(30) as server:
        server.signal(number)
        exit_code, seconds, out, err = server.end()
    assert exit_code == code
    assert seconds < 5
    assert "closed" in out
    assert "Traceback" not in err


def test_sigterm_lets_the_work_be_finished_while_http_answers():
    with running(30) as server:
        thread, answers = server.painting()
        server.signal(signal.SIGTERM)
        server.is_draining()
        server.signal(signal.SIGTERM)  # supervisors repeat themselves
        server.signal(signal.SIGHUP)
        assert server.line() == "reloaded"
        assert server.process.poll() is None
        assert server.client.post("/finish").status_code == 200
        exit_code, seconds, out, _ = server.end()
        thread.join(PATIENCE_S)
    assert answers == [200]
    assert exit_code == 0
    assert seconds < 5
    assert "closed" in out


def test_work_that_does_not_end_has_its_time_and_no_more():
    with running(2) as server:
        thread, answers = server.painting()
        server.signal(signal.SIGTERM)
        exit_code, seconds, out, _ = server.end()
        thread.join(PATIENCE_S)
    assert answers != [200]
    assert exit_code == 0
    assert 0.8 < seconds < 2.5
    assert "closed" in out


def test_a_drain_time_of_zero_waits_for_nothing_and_still_closes_the_app():
    with running(0) as server:
        thread, _ = server.painting()
        server.signal(signal.SIGTERM)
        exit_code, seconds, out, _ = server.end()
        thread.join(PATIENCE_S)
    assert exit_code == 0
    assert seconds < 2
    assert "closed" in out


def test_a_stream_that_does_not_end_holds_nobody_up():
    with running(2) as server, server.client.stream("GET", "/events"):
        server.signal(signal.SIGTERM)
        exit_code, seconds, out, _ = server.end()
    assert exit_code == 0
    assert seconds < 2.5
    assert "closed" in out


def test_an_end_that_hangs_is_cut_off():
    with running(1, "stuck") as server:
        server.signal(signal.SIGTERM)
        exit_code, seconds, _, err = server.end()
    assert exit_code == 143
    assert seconds < 3
    assert "was cut off" in err.splitlines()[-1]


def test_a_second_ctrl_c_does_not_wait():
    with running(60) as server:
        thread, _ = server.painting()
        server.signal(signal.SIGINT)
        server.is_draining()
        server.signal(signal.SIGINT)
        exit_code, seconds, out, err = server.end()
        thread.join(PATIENCE_S)
    assert exit_code == 130
    assert seconds < 5
    assert "closed" in out
    assert err.splitlines()[-1] == "Stopped."


def test_without_an_engine_the_server_ends_with_one_message():
    with running(60) as server:
        server.client.post("/lose")
        exit_code, seconds, _, err = server.end()
    assert exit_code == 1
    assert seconds < 5
    assert err.splitlines()[-1] == "Error: The engine is gone."
    assert "Traceback" not in err
