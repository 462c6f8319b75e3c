"""Two workers of one server, each with an engine of its own: the tiny model, over HTTP."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from live_server import live_server, portrait, wait_until


@pytest.mark.release
def test_cpu_and_cpu_are_two_processes_that_paint_the_same(tmp_path):
    body = {
        "main_face_image": portrait(),
        "prompt": "portrait, neon color",
        "seed": 7,
        "width": 256,
        "height": 256,
        "num_steps": 20,  # long enough for the second call to come meanwhile
        "output_format": "png",
    }
    with live_server(tmp_path / "data", profile="tiny", devices="cpu,cpu", ready=False) as server:
        wait_until(
            lambda: server.client.get("/ready").json().get("devices") == {"cpu:0": "ready", "cpu:1": "ready"},
            200,
        )

        def paint(_):
            with server.new_client() as client:
                return client.post("/v1/flux-pulid", json=body)

        with ThreadPoolExecutor(4) as callers:
            answers = list(callers.map(paint, range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        painted = re.findall(
            r'^flux_pulid_device_jobs_total\{device="(.*)"\} (.*)$', server.client.get("/metrics").text, re.M
        )
        assert [device for device, _ in painted] == ["cpu:0", "cpu:1"]
        assert all(float(jobs) >= 1 for _, jobs in painted)
        assert sum(float(jobs) for _, jobs in painted) == 4
