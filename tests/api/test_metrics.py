"""/metrics: what is counted about requests and jobs, and that callers cannot make it grow."""

import sqlite3
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics

ALICE = {"x-api-key": "alice-key"}
SECRET = "zebra-in-a-tutu"


def samples(text):
    """{(name, labels): value} of everything in the text."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(server, **headers):
    response = server.client.get("/metrics", headers=headers)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(response.text)


def requests_of(found, **labels):
    return sum(
        value
        for (name, given), value in found.items()
        if name == "flux_pulid_http_requests_total" and labels.items() <= dict(given).items()
    )


def test_requests_are_counted_by_route_code_and_key_name(keyed_server):
    before = scraped(keyed_server, **ALICE)
    keyed_server.paint(headers=ALICE)
    keyed_server.paint("/json/v1/flux-pulid", ALICE)
    keyed_server.paint(headers=ALICE, width=1)
    keyed_server.paint()
    keyed_server.client.get("/no/such/address")
    after = scraped(keyed_server, **ALICE)
    for labels, count in [
        ({"route": "/v1/flux-pulid", "code": "200", "key": "alice"}, 1),
        ({"route": "/json/v1/flux-pulid", "code": "200", "key": "alice"}, 1),
        ({"route": "/v1/flux-pulid", "code": "400", "key": "alice"}, 1),
        ({"route": "/v1/flux-pulid", "code": "401", "key": ""}, 1),
        ({"route": "", "code": "404"}, 1),
    ]:
        assert requests_of(after, **labels) - requests_of(before, **labels) == count, labels


def test_a_jobs_way_is_counted_and_timed(keyed_server):
    keyed_server.finished(ALICE)
    keyed_server.finished(ALICE, prompt="no face")
    found = scraped(keyed_server, **ALICE)
    assert found["flux_pulid_jobs_submitted_total", (("api", "v2"),)] >= 2
    assert found["flux_pulid_jobs_ended_total", (("code", ""), ("state", "COMPLETED"))] >= 1
    assert found["flux_pulid_jobs_ended_total", (("code", "no_face"), ("state", "FAILED"))] >= 1
    assert found["flux_pulid_queue_wait_seconds_count", ()] >= 1
    for stage in ("fetch", "decode_photo", "face", "text", "denoise", "decode", "encode"):
        assert found["flux_pulid_stage_seconds_count", (("stage", stage),)] >= 1, stage


def test_the_queue_shows_how_full_it_is(gated):
    ids = [gated.submit().json()["request_id"] for _ in range(4)]
    gated.wait_until(lambda: scraped(gated)["flux_pulid_queue_depth", ()] == 2)
    gated.engine.open_gate()
    for job_id in ids:
        gated.wait_for_status(job_id, "COMPLETED")
    assert scraped(gated)["flux_pulid_queue_depth", ()] == 0


def test_whether_a_job_would_start_is_told_with_the_workers_that_can_work(run_server):
    def told(found):
        return found["flux_pulid_ready", ()], found["flux_pulid_worker_ready", (("device", "none"),)]

    with run_server(ready=False, script={"slow_to_load": True}) as server:
        assert told(scraped(server)) == (0, 0)
        server.engine.let_load()
        server.wait_until(lambda: told(scraped(server)) == (1, 1))
        server.app.state.service.begin_drain()
        assert told(scraped(server)) == (0, 1)


def test_the_room_for_jobs_and_pictures_is_told(run_server):
    with run_server(max_queued_jobs=7) as server:
        found = scraped(server)
        assert found["flux_pulid_queue_capacity", ()] == 7
        assert found["flux_pulid_data_free_bytes", ()] > 2**20


def test_a_data_folder_that_takes_no_writes_is_told(run_server, monkeypatch):
    monkeypatch.setattr("server.jobs.store._BUSY_S", 0.05)
    with run_server() as server:
        assert scraped(server)["flux_pulid_data_writable", ()] == 1
        with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert server.paint().status_code == 503
            assert scraped(server)["flux_pulid_data_writable", ()] == 0
        assert server.paint().status_code == 200
        assert scraped(server)["flux_pulid_data_writable", ()] == 1


def test_the_build_is_told(keyed_server):
    found = scraped(keyed_server, **ALICE)
    [labels] = [dict(labels) for name, labels in found if name == "flux_pulid_build_info"]
    assert set(labels) == {"version", "python"}


def test_nothing_a_caller_invents_becomes_a_series(keyed_server):
    for number in range(5):
        keyed_server.client.request(f"METHOD{number}", f"/v1/flux-pulid?{SECRET}")
        keyed_server.client.get(f"/{SECRET}/{number}")
        keyed_server.client.get(f"/v2/requests/{SECRET}{number}", headers=ALICE)
        keyed_server.client.get(f"/outputs/{SECRET}/{number}.webp")
        keyed_server.client.get("/metrics", headers={"x-api-key": f"{SECRET}{number}"})
    before = scraped(keyed_server, **ALICE)
    for number in range(5, 10):
        keyed_server.client.request(f"METHOD{number}", f"/v1/flux-pulid?{SECRET}")
        keyed_server.client.get(f"/{SECRET}/{number}")
        keyed_server.client.get(f"/v2/requests/{SECRET}{number}", headers=ALICE)
    after = scraped(keyed_server, **ALICE)
    assert SECRET not in str(after)
    assert "METHOD" not in str(after)
    assert after.keys() == before.keys()


def test_two_apps_count_for_themselves():
    one, other = Metrics(), Metrics()
    one.jobs.submitted("v1")
    assert ("flux_pulid_jobs_submitted_total", (("api", "v1"),)) in samples(one.text().decode())
    assert ("flux_pulid_jobs_submitted_total", (("api", "v1"),)) not in samples(other.text().decode())


def test_a_stage_that_is_none_is_passed_over():
    metrics = Metrics()
    metrics.jobs.stage("total", 1.0)
    assert "total" not in {dict(labels).get("stage") for _, labels in samples(metrics.text().decode())}
