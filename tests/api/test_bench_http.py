"""`flux-pulid bench http`: bounded calls to a running server, and figures of what came back."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from fakes import PATIENCE_S
from server.cli import http_load
from server.cli.main import app

QUICK = ("--sizes=256x256", "--num-steps=1")


@pytest.fixture
def photo_file(tmp_path, photo_bytes):
    path = tmp_path / "person.png"
    path.write_bytes(photo_bytes)
    return path


@pytest.fixture
def bench(photo_file):
    """`bench(url, flags)` -> what the command did, and its last line."""

    def run(url, *flags):
        command = ["bench", "http", f"--url={url}", f"--photo={photo_file}", *QUICK, *flags]
        done = CliRunner().invoke(app, command)
        # Servers of these tests log to the same output, also after the command's end.
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return done, json.loads(lines[-1]) if lines else None

    return run


class Stub:
    """Stands where a server stands and answers as a test says; for what a real one does too rarely."""

    def __init__(self, answers=(), *, delay_s=0.0, hold_after=None, notice=""):
        self.answers = list(answers)  # (status, headers) of the first calls; then pictures
        self.delay_s = delay_s
        self.hold_after = hold_after  # calls; later ones get no answer until the end
        self.notice = notice
        self.begun = self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    def answer(self):
        with self.lock:
            self.begun += 1
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
            held = self.hold_after is not None and self.begun > self.hold_after
            status, headers = self.answers.pop(0) if self.answers else (200, {"x-generation-time": "0.5"})
        self.over.wait(PATIENCE_S if held else self.delay_s)
        with self.lock:
            self.now -= 1
        return status, headers


@pytest.fixture
def stub():
    """`with stub(...)`-like: makes a stub and gives it with its address; all end with the test."""
    servers = []

    def make(*arguments, **choice):
        the_stub = Stub(*arguments, **choice)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                ready = {"status": "ready", "profile": "p", "device": "d", "notice": the_stub.notice}
                self.send(200, json.dumps(ready).encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send(*the_stub.answer())

            def send(self, status, told):
                body, headers = (told, {}) if isinstance(told, bytes) else (b'{"error": "busy"}', told)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((the_stub, server, thread))
        return the_stub, f"http://127.0.0.1:{server.server_port}"

    yield make
    for the_stub, server, thread in servers:
        the_stub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_pictures_are_counted_by_size_and_timed(server, bench):
    done, line = bench(server.url, "--requests=5", "--parallel=2", "--sizes=256x256,320x256")
    assert done.exit_code == 0, done.output
    assert (line["calls"], line["pictures"], line["interrupted"]) == (5, 5, False)
    assert {size: told["pictures"] for size, told in line["sizes"].items()} == {"256x256": 3, "320x256": 2}
    assert line["statuses"] == {"200": 5}
    assert 0 < line["call_s"]["p50"] <= line["call_s"]["p95"] <= line["call_s"]["p99"]
    assert line["generation_s"]["p50"] <= line["call_s"]["p99"]
    assert line["pictures_per_s"] == pytest.approx(5 / line["seconds"], rel=0.01)
    assert re.search(r"^320x256 +[\d.]+ +[\d.]+ +[\d.]+ +2 ", done.stdout, re.MULTILINE)
    assert "Call 5 of 5" in done.stderr


def test_every_call_has_a_seed_of_its_own(gated, bench):
    gated.engine.open_gate()
    bench(gated.url, "--requests=3")
    assert [request.seed for request in gated.engine.admitted.values()] == [0, 1, 2]


def test_the_defaults_are_modest(stub, bench):
    the_stub, url = stub()
    done, line = bench(url)
    assert (done.exit_code, line["calls"], the_stub.begun, the_stub.most_at_once) == (0, 20, 20, 1)


def test_no_more_calls_run_at_one_time_than_asked_for(stub, bench):
    the_stub, url = stub(delay_s=0.05)
    bench(url, "--requests=9", "--parallel=3")
    assert (the_stub.begun, the_stub.most_at_once) == (9, 3)


def test_errors_are_counted_by_their_text(server, bench):
    done, line = bench(server.url, "--requests=2", "--prompt=no face")
    assert done.exit_code == 1
    assert line["statuses"] == {"400": 2}
    [(text, count)] = line["errors"].items()
    assert (count, line["call_s"]) == (2, {})
    assert text in done.stdout


def test_a_key_is_sent_and_never_shown(keyed_server, bench):
    done, line = bench(keyed_server.url, "--requests=1", "--api-key=alice-key")
    assert (done.exit_code, line["pictures"]) == (0, 1)
    assert "alice-key" not in done.output
    done, line = bench(keyed_server.url, "--requests=1")
    assert (done.exit_code, line["statuses"]) == (1, {"401": 1})


def test_who_is_told_to_come_back_waits_as_long_as_told(stub, bench):
    busy = (429, {"retry-after": "1"})
    the_stub, url = stub([busy, (503, {"retry-after": "0"})])
    started = time.monotonic()
    done, line = bench(url, "--requests=1")
    assert time.monotonic() - started >= 1
    assert done.exit_code == 0
    assert (line["statuses"], line["told_to_come_back"]) == ({"200": 1}, {"429": 1, "503": 1})
    assert line["call_s"]["p50"] < 1  # the wait is not the call's
    assert the_stub.begun == 3


def test_coming_back_has_an_end(stub, bench, monkeypatch):
    monkeypatch.setattr(http_load, "MAX_WAITS", 2)
    the_stub, url = stub([(429, {"retry-after": "0"})] * 9)
    done, line = bench(url, "--requests=1")
    assert (done.exit_code, the_stub.begun) == (1, 3)
    assert line["statuses"] == {"429": 1}
    assert line["errors"] == {"busy": 1}


def test_after_the_duration_no_call_is_begun(stub, bench):
    the_stub, url = stub(delay_s=0.3)
    done, line = bench(url, "--requests=50", "--duration=1")
    assert done.exit_code == 0
    assert line["calls"] == the_stub.begun < 10


def test_an_answer_that_does_not_come_is_counted(stub, bench):
    _, url = stub(hold_after=0)
    done, line = bench(url, "--requests=1", "--timeout=1")
    assert (done.exit_code, line["statuses"], line["errors"]) == (1, {"no answer": 1}, {"ReadTimeout": 1})


def test_ctrl_c_tells_what_was_done(stub, photo_file):
    the_stub, url = stub(hold_after=2)
    command = [
        sys.executable,
        "-m",
        "server",
        "bench",
        "http",
        f"--url={url}",
        f"--photo={photo_file}",
        *QUICK,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while the_stub.begun < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    line = json.loads(out.splitlines()[-1])
    assert process.returncode == 130, err
    assert (line["calls"], line["pictures"], line["interrupted"]) == (2, 2, True)
    assert "Traceback" not in err


def test_the_notice_of_a_profile_is_told(stub, bench):
    _, url = stub(notice="tiny profile: abstract pictures")
    done, line = bench(url, "--requests=1")
    assert "tiny profile: abstract pictures. The figures say nothing about another profile." in done.stderr
    assert line["notice"] == "tiny profile: abstract pictures"


def test_a_server_that_is_not_ready_gets_no_call(run_server, bench):
    with run_server(ready=False, script={"slow_to_load": True}) as server:
        done, _ = bench(server.url)
        assert done.exit_code == 1
        assert f"The server at {server.url} is not ready" in done.stderr


def test_where_no_server_is_nothing_is_sent(bench, photo_host):
    done, _ = bench("http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "No server answers at http://127.0.0.1:9" in done.stderr
    done, _ = bench(f"http://{photo_host}")
    assert done.exit_code == 1
    assert "is not this server" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sizes=896"], "--sizes"),
        (["--sizes=100x256"], "width must be"),
        (["--num-steps=99"], "num_steps must be"),
        (["--url=127.0.0.1:8000"], "--url"),
        (["--url=http://127.0.0.1:8000/v1/flux-pulid"], "without a path"),
        (["--url=http://me:secret@127.0.0.1:8000"], "password"),
        (["--url=http://127.0.0.1:eight"], "--url"),
        (["--photo=/no/such/photo.jpg"], "cannot be read"),
        (["--requests=1000000"], "10000"),
        (["--parallel=1000"], "64"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_sent(stub, bench, flags, said):
    the_stub, url = stub()
    done, _ = bench(url, *flags)
    assert done.exit_code == 2
    assert said in done.output
    assert the_stub.begun == 0


def test_percentiles_are_values_that_were_measured():
    assert http_load.percentiles([4.0, 1.0, 3.0, 2.0]) == {"p50": 2.0, "p95": 4.0, "p99": 4.0}
    assert http_load.percentiles([]) == {}


def test_sizes_come_in_turn(stub, bench):
    _, url = stub()
    _, line = bench(url, "--requests=4", "--sizes=256x256,512x512,256x512")
    assert Counter({s: told["pictures"] for s, told in line["sizes"].items()}) == {
        "256x256": 2,
        "512x512": 1,
        "256x512": 1,
    }
