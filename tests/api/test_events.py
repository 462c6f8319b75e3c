"""The stream of a job's events: its words, its silence, its end."""

import asyncio
import base64
import json
import threading

import httpx
import pytest

from fakes import PATIENCE_S, preview_of
from server.api.events import event_stream
from server.jobs.job import JobNotFound, JobRecord, JobState
from server.jobs.live import JobView


def view(state):
    record = JobRecord(
        id="0" * 32, key="", api="v2", state=state, submitted_at=0, deadline_at=1, media_id="1" * 32
    )
    return JobView(record=record)


def told(view):
    return view.record.state.encode()


async def collected(views, *, going_down=lambda: False, ping_s=15.0):
    return [chunk async for chunk in event_stream(views, told, going_down=going_down, ping_s=ping_s)]


def test_every_view_is_told_and_the_stream_ends_with_them():
    async def views():
        for state in JobState:
            yield view(state)

    assert asyncio.run(collected(views())) == [state.encode() for state in JobState]


def test_silence_is_broken_by_pings():
    async def views():
        yield view(JobState.PROCESSING)
        await asyncio.sleep(1.3)
        yield view(JobState.COMPLETED)

    stream = asyncio.run(collected(views(), ping_s=0.5))
    assert stream[0] == b"PROCESSING"
    assert stream[-1] == b"COMPLETED"
    assert set(stream[1:-1]) == {b": ping\n\n"}


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PROCESSING])
def test_a_server_that_goes_down_keeps_only_the_streams_of_running_jobs(state):
    async def views():
        yield view(state)
        await asyncio.sleep(1.2)
        yield view(JobState.COMPLETED)

    stream = asyncio.run(collected(views(), going_down=lambda: True))
    assert stream == ([b"QUEUED"] if state is JobState.QUEUED else [b"PROCESSING", b"COMPLETED"])


def test_a_job_that_is_deleted_while_someone_watches_ends_the_stream():
    async def views():
        yield view(JobState.QUEUED)
        raise JobNotFound

    assert asyncio.run(collected(views())) == [b"QUEUED"]


class Listener:
    """Reads the stream of a job in a thread."""

    def __init__(self, server, job_id, path="/v2/requests/{}/events"):
        self.headers = httpx.Headers()
        self.raw = ""
        self._url = server.url + path.format(job_id)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        with httpx.stream("GET", self._url, timeout=PATIENCE_S, trust_env=False) as response:
            self.headers = response.headers
            for text in response.iter_text():
                self.raw += text

    @property
    def bodies(self):
        events = [event for event in self.raw.split("\n\n") if event.startswith("event: status\ndata: ")]
        return [json.loads(event.removeprefix("event: status\ndata: ")) for event in events]

    def join(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the stream did not end"


def test_a_job_is_told_step_by_step_until_it_is_done(gated):
    blocker = gated.submit().json()["request_id"]
    job_id = gated.submit(num_steps=3).json()["request_id"]
    listener = Listener(gated, job_id)
    gated.wait_until(lambda: len(listener.bodies) == 1)
    gated.engine.run_steps(1)
    for step in (1, 2, 3):
        gated.engine.run_steps(1)
        gated.wait_until(
            lambda step=step: any(
                body.get("progress", {}).get("step") == step or body["status"] == "COMPLETED"
                for body in listener.bodies
            )
        )
    listener.join()
    assert listener.headers["content-type"].startswith("text/event-stream")
    assert listener.headers["cache-control"] == "no-store"
    assert listener.headers["x-accel-buffering"] == "no"
    words = [body["status"] for body in listener.bodies]
    assert sorted(set(words), key=words.index) == ["QUEUED", "PROCESSING", "COMPLETED"]
    steps = [body["progress"]["step"] for body in listener.bodies if "progress" in body]
    assert steps == sorted(steps)
    assert {1, 2} <= set(steps)
    assert listener.bodies[0]["queue_position"] == 0
    assert listener.bodies[-1] == gated.status(job_id).json()
    assert gated.status(blocker).json()["status"] == "COMPLETED"


def data_uri(step):
    return f"data:image/jpeg;base64,{base64.b64encode(preview_of(step)).decode()}"


def test_who_asks_for_previews_gets_them_with_the_steps_and_nobody_else_does(gated):
    job_id = gated.submit(num_steps=5).json()["request_id"]
    gated.wait_for_status(job_id, "PROCESSING")
    watcher = Listener(gated, job_id, "/v2/requests/{}/events?preview=true")
    others = [Listener(gated, job_id, "/v2/requests/{}/events" + query) for query in ("", "?preview=false")]
    gated.wait_until(lambda: all(listener.bodies for listener in (watcher, *others)))
    for step in (1, 2, 3, 4):
        gated.engine.run_steps(1)
        gated.wait_until(lambda step=step: gated.status(job_id).json()["progress"]["step"] == step)
        gated.wait_until(lambda step=step: watcher.bodies[-1]["progress"]["step"] == step)
    assert "preview" not in gated.status(job_id).json()
    gated.engine.open_gate()
    for listener in (watcher, *others):
        listener.join()
    previews = {
        body["progress"]["step"]: body["preview"]
        for body in watcher.bodies
        if body.get("preview") is not None
    }
    assert {3: data_uri(3), 4: data_uri(4)}.items() <= previews.items()
    assert all("preview" not in body for body in (watcher.bodies[0], watcher.bodies[-1]))
    assert not any("preview" in body for listener in others for body in listener.bodies)


def test_a_watcher_who_closes_the_connection_ends_the_previews(gated):
    job_id = gated.submit(num_steps=20).json()["request_id"]
    gated.wait_for_status(job_id, "PROCESSING")
    job = gated.app.state.service._runner.live[job_id]
    url = f"{gated.url}/v2/requests/{job_id}/events?preview=true"
    with httpx.stream("GET", url, trust_env=False) as response:
        texts = response.iter_text()
        next(texts)  # it closes the connection when nobody holds it any more
        assert job.watchers == 1
    gated.wait_until(lambda: job.watchers == 0)
    gated.engine.run_steps(2)
    gated.wait_until(lambda: [line["on"] for line in gated.engine.lines("watch")] in ([], [True, False]))
    gated.engine.open_gate()
    assert gated.wait_for_status(job_id, "COMPLETED")


@pytest.mark.parametrize("word", ["true", "True", "1", "yes", "on", "false", "0", "no"])
def test_previews_are_asked_for_in_any_word_that_a_boolean_has_in_a_body(server, word):
    job_id = server.finished()["request_id"]
    assert server.client.get(f"/v2/requests/{job_id}/events?preview={word}").status_code == 200
    assert server.finished(strict_face=word)["status"] == "COMPLETED"


@pytest.mark.parametrize("word", ["maybe", "2", ""])
def test_any_other_word_is_refused_as_it_is_in_a_body(server, word):
    job_id = server.finished()["request_id"]
    answer = server.client.get(f"/v2/requests/{job_id}/events?preview={word}")
    assert answer.status_code == 400
    problem = {"field": "preview", "message": "preview must be true or false."}
    assert answer.json()["fields"] == [problem]


def test_the_time_that_is_left_is_told_from_the_second_step_on(gated):
    job_id = gated.submit(num_steps=4).json()["request_id"]
    listener = Listener(gated, job_id)
    for step in (1, 2, 3):
        gated.engine.run_steps(1)
        gated.wait_until(
            lambda step=step: listener.bodies and listener.bodies[-1].get("progress", {}).get("step") == step
        )
    shown = gated.status(job_id).json()["progress"]
    gated.engine.open_gate()
    listener.join()
    left = {
        body["progress"]["step"]: body["progress"]["seconds_left"]
        for body in listener.bodies
        if "progress" in body
    }
    assert left[1] is None
    assert left[2] >= 0
    assert shown == {"step": 3, "num_steps": 4, "seconds_left": left[3]}


def test_a_job_that_has_ended_is_told_once(server):
    job_id = server.finished(prompt="no face")["request_id"]
    listener = Listener(server, job_id, "/json/v2/requests/{}/events/")
    listener.join()
    assert listener.bodies == [server.status(job_id).json()]
    assert listener.bodies[0]["status"] == "FAILED"
    assert "output" not in listener.raw


def test_links_in_events_keep_the_json_mount(gated):
    job_id = gated.submit().json()["request_id"]
    listener = Listener(gated, job_id, "/json/v2/requests/{}/events")
    gated.wait_until(lambda: listener.bodies)
    assert f"{gated.url}/json/v2/requests/{job_id}" == listener.bodies[0]["response_url"]
    gated.engine.open_gate()
    listener.join()


def test_a_listener_that_leaves_changes_nothing(gated):
    job_id = gated.submit().json()["request_id"]
    with httpx.stream("GET", f"{gated.url}/v2/requests/{job_id}/events", trust_env=False) as response:
        next(response.iter_text())
    gated.engine.open_gate()
    assert gated.wait_for_status(job_id, "COMPLETED")
