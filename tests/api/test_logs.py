"""The log: one line for each request, under its own id, and nothing personal in any line."""

import asyncio
import base64
import io
import json
import logging
import sys

import pytest
import structlog

from server.logs import configure_logs

ALICE = {"x-api-key": "alice-key"}
SECRET = "zebra-in-a-tutu"


@pytest.fixture
def log_lines():
    """What the server logs while the test runs, as JSON lines."""
    stream = io.StringIO()
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(stream)
    )
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**before)


def test_the_log_has_one_line_for_each_request_with_its_own_id(server, log_lines):
    response = server.client.get("/health/?secret=1", headers={"x-request-id": "f" * 32})
    request_id = response.headers["x-request-id"]
    assert request_id != "f" * 32
    server.wait_until(lambda: request_id in str(log_lines()))
    [line] = [line for line in log_lines() if line.get("request_id") == request_id]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/health", 200)


def test_a_v1_call_and_its_job_share_an_id_in_the_log(server, log_lines):
    job_id = server.paint(base64=True).json()["request_id"]
    server.wait_until(
        lambda: {line["event"] for line in log_lines() if job_id in str(line)} == {"request", "job ended"}
    )


def test_prompts_photos_queries_keys_and_media_ids_stay_out_of_the_log(keyed_server, photo, log_lines):
    server = keyed_server
    result = server.finished(ALICE, prompt=SECRET)
    media_id = result["output"].split("/")[-2]
    server.client.get(f"/outputs/{media_id}/0.webp")
    server.client.get(f"/outputs/{media_id}/9.webp")
    server.client.get(f"/outputs/{media_id}")
    server.paint(f"/v1/flux-pulid?q={SECRET}", ALICE, prompt=f"{SECRET} raise at step 1")
    server.paint(headers=ALICE, main_face_image=f"http://127.0.0.1:9/{SECRET}.png")
    for image in (photo, SECRET, f"http://127.0.0.1:9/{SECRET}.png"):
        server.client.post("/v1/faces", json={"image": image}, headers=ALICE)
    for photos in ([photo, SECRET], [f"http://127.0.0.1:9/{SECRET}.png"], [photo]):
        server.client.post("/v1/identities", json={"face_images": photos}, headers=ALICE)
    identity = base64.b64encode(SECRET.encode()).decode()
    people = [{"photo": photo, "box": [0.12345, 0, 1, 1]}, {"identity": identity}]
    server.paint(headers=ALICE, main_face_image=None, prompt=f"{SECRET} raise at step 1", faces=people)
    server.paint(headers=ALICE, main_face_image=None, faces=[{"photo": photo, "mask": SECRET}])
    server.paint(headers=ALICE, face_images=[photo, SECRET])
    server.client.get(f"/{SECRET}")
    server.submit(ALICE | {"Idempotency-Key": SECRET}, seed=SECRET)
    with server.broken():
        server.paint(headers=ALICE, prompt=SECRET)
    server.wait_until(lambda: any(line["event"] == "request fault" for line in log_lines()))
    text = json.dumps(log_lines())
    assert len(log_lines()) > 8
    for word in (SECRET, media_id, "alice-key", photo[:40], "127.0.0.1:9", identity, "0.12345"):
        assert word not in text


@pytest.fixture
def configured(monkeypatch):
    """The log as the server sets it up; its lines."""
    stream = io.StringIO()
    before, handlers, level = structlog.get_config(), logging.root.handlers[:], logging.root.level
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(level="info", form="json")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**before)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_what_libraries_log_becomes_events_without_the_text_of_exceptions(configured):
    async def lose_a_task():
        async def fail():
            raise ValueError(SECRET)

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    asyncio.run(lose_a_task())
    try:
        raise RuntimeError(SECRET)
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    logging.getLogger("httpx").info("GET https://example.com/%s", SECRET)
    lost, fault = configured()
    assert (lost["event"], lost["source"]) == ("Task exception was never retrieved", "asyncio")
    assert (lost["exception"], fault["exception"]) == ("ValueError", "RuntimeError")
    assert fault["trace"]
    assert SECRET not in json.dumps([lost, fault])
