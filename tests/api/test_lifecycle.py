"""Loading, readiness, clients that leave, photos by URL, stopping: the server over time."""

import asyncio
import json
import os
import signal
import socket
import threading

from fakes import PATIENCE_S, Script
from pulid.errors import DeviceUnavailable
from server.app import create_app
from server.settings import Settings


def test_while_the_engine_loads_the_server_is_alive_but_not_ready(run_server):
    with run_server(script={"slow_to_load": True}, ready=False) as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        answer = server.client.get("/ready")
        assert answer.status_code == 503
        assert "loading" in answer.json()["reason"]
        assert int(answer.headers["retry-after"]) > 0
        for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
            refusal = server.paint(path)
            assert refusal.status_code == 503
            assert "loading" in refusal.json()["error"]
            assert int(refusal.headers["retry-after"]) > 0
        server.engine.let_load()
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        ready = {"status": "ready", "profile": "scripted", "device": "none", "notice": ""}
        ready |= {"devices": {"none": "ready"}, "out_of_service": {}}
        assert server.client.get("/ready").json() == ready
        assert server.paint().status_code == 200


def test_while_the_engine_loads_ready_says_how_far_it_is(run_server):
    with run_server(script={"slow_to_load": True, "loaded_percent": 43}, ready=False) as server:
        far = "the engine is still loading: FLUX transformer, 43 percent"
        server.wait_until(lambda: server.client.get("/ready").json()["reason"] == far)
        assert server.client.get("/ready").json()["error"] == f"Not ready: {far}."
        os.kill(server.engine.pids[0], signal.SIGKILL)
        server.wait_until(lambda: len(server.engine.pids) == 2)
        server.engine.let_load()
        server.wait_until(lambda: server.client.get("/ready").status_code == 200)
        (server.engine.folder / "load").unlink()
        server.submit(prompt="crash once")
        again = "the engine is being started again: FLUX transformer, 43 percent"
        server.wait_until(lambda: server.client.get("/ready").json().get("reason") == again)
        server.engine.let_load()


def test_ready_names_the_devices_that_are_out_of_service_while_others_work(run_server):
    script = {"load_error": DeviceUnavailable("There is no such card."), "fails_on": ("two",)}
    with run_server(script=script, devices=("one", "two")) as server:
        server.wait_until(lambda: server.client.get("/ready").json().get("out_of_service"))
        told = server.client.get("/ready").json()
        assert told["status"] == "ready"
        assert told["devices"] == {"one": "ready", "two": "out of service"}
        assert told["out_of_service"] == {"two": "There is no such card."}
        assert server.paint().status_code == 200
        assert server.client.get("/health").status_code == 200


def test_a_device_whose_worker_has_died_is_starting_while_others_work(run_server):
    with run_server(devices=("one", "two")) as server:
        server.wait_until(lambda: set(server.client.get("/ready").json()["devices"].values()) == {"ready"})
        one = server.engine.lines("loading")[0]
        os.kill(one["pid"], signal.SIGKILL)
        server.wait_until(lambda: server.client.get("/ready").json()["devices"][one["device"]] == "starting")
        server.wait_until(lambda: server.client.get("/ready").json()["devices"][one["device"]] == "ready")


def test_what_a_dead_worker_said_of_its_loading_is_not_told_any_more(run_server):
    with run_server(script={"slow_to_load": True, "loaded_percent": 43}, ready=False) as server:
        server.wait_until(lambda: "43 percent" in server.client.get("/ready").json()["reason"])
        told = server.app.state.service._runner.devices
        os.kill(server.engine.pids[0], signal.SIGKILL)
        server.wait_until(lambda: told.loading is None)
        server.wait_until(lambda: "43 percent" in server.client.get("/ready").json()["reason"])
        assert len(server.engine.pids) == 2
        server.engine.let_load()


def test_without_an_engine_the_server_says_why_and_stays_alive(run_server):
    no_card = DeviceUnavailable("There is no such card.")
    with run_server(script={"load_error": no_card}, ready=False) as server:
        server.wait_until(lambda: "loading" not in server.client.get("/ready").json()["reason"])
        answer = server.client.get("/ready")
        assert answer.status_code == 503
        assert "no such card" in answer.json()["reason"]
        assert server.paint().status_code == 503
        assert server.client.get("/health").status_code == 200


def test_a_request_that_kills_its_worker_twice_fails_and_the_next_one_works(run_server):
    with run_server() as server:
        job_id = server.submit(prompt="crash at step 1").json()["request_id"]
        server.wait_until(lambda: server.client.get("/ready").status_code == 503)
        assert "started again" in server.client.get("/ready").json()["reason"]
        accepted = server.submit()
        assert accepted.status_code == 200, "jobs can wait for the next worker"
        assert "died" in server.wait_for_status(job_id, "FAILED")["error"]
        server.wait_for_status(accepted.json()["request_id"], "COMPLETED")
        assert len(server.engine.pids) == 3
        assert "flux_pulid_worker_deaths_total 2.0" in server.client.get("/metrics").text


def test_a_server_that_is_going_down_says_so_and_refuses_work(run_server):
    with run_server() as server:
        server.app.state.service.begin_drain()
        answer = server.client.get("/ready")
        assert answer.status_code == 503
        assert "going down" in answer.json()["reason"]
        for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
            refusal = server.paint(path)
            assert refusal.status_code == 503
            assert int(refusal.headers["retry-after"]) > 0
        assert server.client.get("/health").status_code == 200


def test_below_the_disk_watermark_work_is_refused_and_the_rest_goes_on(server, monkeypatch):
    job_id = server.finished()["request_id"]
    monkeypatch.setattr("server.jobs.storage.free_bytes", lambda folder: 0)
    answer = server.client.get("/ready")
    assert answer.status_code == 503
    assert "disk is full" in answer.json()["reason"]
    for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
        refusal = server.paint(path)
        assert refusal.status_code == 503
        assert int(refusal.headers["retry-after"]) > 0
    assert server.result(job_id).status_code == 200
    assert server.client.get("/health").status_code == 200


def test_health_answers_while_the_engine_is_in_the_middle_of_a_step(gated):
    engine = gated.engine
    caller = threading.Thread(target=gated.paint)
    caller.start()
    assert engine.wait_for(lambda: len(engine.admitted) == 1)
    assert gated.client.get("/health").status_code == 200
    assert gated.client.get("/ready").status_code == 200
    assert gated.paint(width=1).status_code == 400
    engine.open_gate()
    caller.join(PATIENCE_S)


def test_a_bad_photo_is_refused_while_the_engine_is_busy(gated):
    engine = gated.engine
    callers = [threading.Thread(target=gated.paint) for _ in range(6)]
    for caller in callers:
        caller.start()
    assert engine.wait_for(lambda: len(engine.admitted) == 1)
    assert gated.paint(main_face_image="AAAA").status_code == 400
    engine.open_gate()
    for caller in callers:
        caller.join(PATIENCE_S)
    assert len(engine.admitted) == 6


def raw_call(port, photo, **parameters):
    """A connection on which a complete request was sent."""
    body = json.dumps({"main_face_image": photo, "prompt": "p", "num_steps": 20} | parameters).encode()
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    head = f"POST /v1/flux-pulid HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def test_a_client_that_leaves_takes_its_job_with_it(gated, photo):
    engine = gated.engine
    sock = raw_call(gated.port, photo)
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
    assert gated.paint().status_code == 200


def test_a_client_that_leaves_the_queue_is_never_begun(gated, photo):
    engine = gated.engine
    first = threading.Thread(target=gated.paint)
    first.start()
    assert engine.wait_for(lambda: len(engine.admitted) == 1)
    call = raw_call(gated.port, photo, prompt="left")
    gated.wait_until(lambda: gated.unfinished == 2)
    call.close()
    # Its place in the queue is free again once the server has noticed.
    gated.wait_until(lambda: gated.unfinished == 1)
    engine.open_gate()
    first.join(PATIENCE_S)
    assert gated.paint(prompt="next").status_code == 200
    assert [request.prompt for request in engine.admitted.values()] == ["portrait", "next"]


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(server):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    sock.sendall(b"POST /v1/flux-pulid HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
    sock.close()
    assert server.paint().status_code == 200


def test_a_photo_is_fetched_from_an_allow_listed_host(run_server, photo_host):
    with run_server(fetch_allow=(photo_host,)) as server:
        assert server.paint(main_face_image=f"http://{photo_host}/photo.png").status_code == 200
        assert server.engine.last_request.id_images[0].shape == (48, 64, 3)


def test_without_the_allow_list_this_machine_is_out_of_reach(server, photo_host):
    answer = server.paint(main_face_image=f"http://{photo_host}/photo.png")
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "The photo at main_face_image could not be fetched. Use a public http(s) address of an image "
        "up to 20 MB, or send the photo as base64."
    )


def test_a_slow_fetch_does_not_keep_others_from_the_engine(run_server, photo_bytes):
    may_answer = threading.Event()

    async def fetch(url):
        await asyncio.to_thread(may_answer.wait, PATIENCE_S)
        return photo_bytes

    with run_server(fetch_photo=fetch) as server:
        slow = threading.Thread(target=server.paint, kwargs={"main_face_image": "https://slow.example/"})
        slow.start()
        server.wait_until(lambda: server.unfinished == 1)
        assert server.paint(prompt="fast").status_code == 200
        assert server.engine.last_request.prompt == "fast"
        may_answer.set()
        slow.join(PATIENCE_S)
        assert len(server.engine.admitted) == 2


def test_stopping_the_app_frees_the_engine_and_takes_no_more_work(tmp_path):
    (tmp_path / "script").mkdir()
    engine = Script(tmp_path / "script")
    app = create_app(Settings(data_dir=tmp_path / "data"), create_engine=engine, devices=("none",))

    async def scenario():
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(
                engine.wait_for, lambda: app.state.service.not_ready_reason is None
            )
        return app.state.service.not_ready_reason

    assert "going down" in asyncio.run(scenario())
    assert engine.closed
