"""Loading, readiness, clients that leave, photos by URL, stopping: the server over time."""

import asyncio
import json
import socket
import threading

import pytest

from fakes import PATIENCE_S, ScriptedEngine
from pulid.errors import DeviceUnavailable
from server.app import create_app
from server.settings import Settings


def test_while_the_engine_loads_the_server_is_alive_but_not_ready(run_server):
    loaded = threading.Event()
    engine = ScriptedEngine()

    def create_engine():
        assert loaded.wait(PATIENCE_S)
        return engine

    with run_server(engine, create_engine=create_engine, ready=False) as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        answer = server.client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "loading"
        refusal = server.paint()
        assert refusal.status_code == 503
        assert "loading" in refusal.json()["error"]
        assert int(refusal.headers["retry-after"]) > 0
        loaded.set()
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert server.client.get("/ready").json()["profile"] == "scripted"
        assert server.paint().status_code == 200


@pytest.mark.parametrize(
    ("fault", "words"),
    [(DeviceUnavailable("no such card"), "no such card"), (RuntimeError("driver"), "could not be created")],
)
def test_without_an_engine_the_server_says_why_and_tells_its_owner(run_server, fault, words):
    def create_engine():
        raise fault

    with run_server(create_engine=create_engine, ready=False) as server:
        server.wait_until(lambda: server.client.get("/ready").json()["reason"] != "loading")
        answer = server.client.get("/ready")
        assert answer.status_code == 503
        assert words in answer.json()["reason"]
        assert server.paint().status_code == 503
        assert server.client.get("/health").status_code == 200


def test_an_engine_whose_thread_dies_fails_its_jobs_and_readiness(run_server):
    class DyingEngine(ScriptedEngine):
        def step(self):
            raise SystemExit

    with run_server(DyingEngine()) as server:
        assert server.paint().status_code == 500
        server.wait_until(lambda: server.client.get("/ready").status_code == 503)


def test_the_engine_is_driven_by_one_thread_and_closed_at_the_end(run_server):
    engine = ScriptedEngine()
    with run_server(engine) as server:
        for _ in range(3):
            assert server.paint().status_code == 200
        assert len(engine.threads) == 1
        assert threading.get_ident() not in engine.threads
    assert engine.closed


def test_health_answers_while_the_engine_is_in_the_middle_of_a_step(run_server):
    engine = ScriptedEngine(gated=True)
    with run_server(engine) as server:
        caller = threading.Thread(target=server.paint)
        caller.start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/ready").status_code == 200
        assert server.paint(width=1).status_code == 400
        engine.open_gate()
        caller.join(PATIENCE_S)


def test_a_bad_photo_is_refused_while_the_engine_is_busy(run_server):
    engine = ScriptedEngine(gated=True)
    with run_server(engine) as server:
        callers = [threading.Thread(target=server.paint) for _ in range(6)]
        for caller in callers:
            caller.start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        assert server.paint(main_face_image="AAAA").status_code == 400
        engine.open_gate()
        for caller in callers:
            caller.join(PATIENCE_S)
        assert len(engine.admitted) == 6


def raw_call(port, photo, **parameters):
    """A connection on which a complete request was sent."""
    body = json.dumps({"main_face_image": photo, "prompt": "p", "num_steps": 20} | parameters).encode()
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    head = f"POST /v1/flux-pulid HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def test_a_client_that_leaves_takes_its_job_with_it(run_server, photo):
    engine = ScriptedEngine(gated=True)
    with run_server(engine) as server:
        sock = raw_call(server.port, photo)
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        engine.run_steps(3)
        assert engine.wait_for(lambda: 3 in engine.steps.values())
        sock.close()
        for _ in range(16):  # the server notices within a moment, not within a number of steps
            if engine.wait_for(lambda: len(engine.cancelled) == 1, timeout_s=0.1):
                break
            engine.run_steps(1)
        assert len(engine.cancelled) == 1
        assert max(engine.steps.values()) < 20
        engine.open_gate()
        assert server.paint().status_code == 200


def test_a_client_that_leaves_the_queue_is_never_begun(run_server, photo):
    engine = ScriptedEngine(gated=True)
    with run_server(engine) as server:
        first = threading.Thread(target=server.paint)
        first.start()
        assert engine.wait_for(lambda: len(engine.admitted) == 1)
        raw_call(server.port, photo, prompt="left").close()
        # Its place in the queue is free again once the server has noticed.
        server.wait_until(lambda: len(server.app.state.service.unfinished) == 1)
        engine.open_gate()
        first.join(PATIENCE_S)
        assert server.paint(prompt="next").status_code == 200
        assert [request.prompt for request in engine.admitted.values()] == ["portrait", "next"]


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(server):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    sock.sendall(b"POST /v1/flux-pulid HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    sock.close()
    assert server.paint().status_code == 200


def test_a_photo_is_fetched_from_an_allow_listed_host(run_server, photo_host):
    with run_server(fetch_allow=(photo_host,)) as server:
        assert server.paint(main_face_image=f"http://{photo_host}/photo.png").status_code == 200
        assert server.engine.last_request.id_image.shape == (48, 64, 3)


def test_without_the_allow_list_this_machine_is_out_of_reach(server, photo_host):
    answer = server.paint(main_face_image=f"http://{photo_host}/photo.png")
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "The picture at main_face_image could not be fetched. Use a public http(s) address of an image "
        "up to 20 MB, or send the picture as base64."
    )


def test_a_slow_fetch_does_not_keep_others_from_the_engine(run_server, photo_bytes):
    may_answer = threading.Event()

    async def fetch(url):
        await asyncio.to_thread(may_answer.wait, PATIENCE_S)
        return photo_bytes

    with run_server(fetch_photo=fetch) as server:
        slow = threading.Thread(target=server.paint, kwargs={"main_face_image": "https://slow.example/"})
        slow.start()
        server.wait_until(lambda: len(server.app.state.service.unfinished) == 1)
        assert server.paint(prompt="fast").status_code == 200
        assert server.engine.last_request.prompt == "fast"
        may_answer.set()
        slow.join(PATIENCE_S)
        assert len(server.engine.admitted) == 2


def test_stopping_the_app_frees_the_engine_and_takes_no_more_work():
    engine = ScriptedEngine()
    app = create_app(Settings(), create_engine=lambda: engine)

    async def scenario():
        async with app.router.lifespan_context(app):
            assert app.state.service.not_ready_reason in ("loading", None)
        return app.state.service.not_ready_reason

    assert asyncio.run(scenario()) == "stopping"
    assert engine.closed
