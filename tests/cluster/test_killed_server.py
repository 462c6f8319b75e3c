"""Two server processes over one database: one of them is killed, then the database is."""

import time

import pytest

from cluster.front_ends import LEASE_S, front_ends
from failures.books import a_request
from fakes import Script

pytestmark = pytest.mark.release  # test_two_services.py kills a smaller one, always


@pytest.fixture
def ends(tmp_path, database):
    (tmp_path / "script").mkdir()
    script = Script(tmp_path / "script")
    with front_ends(tmp_path, database, script, concurrency_per_key=2) as ends:
        yield ends


def status_of(server, job_id):
    return server.client.get(f"/v2/requests/{job_id}/status").json()["status"]


def wait_for(condition, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_servers_job_is_done_by_the_other_and_a_database_that_is_gone_is_503(ends, postgres):
    one, two = ends.servers["one"], ends.servers["two"]
    slow = a_request("portrait, slow 0.2 s per step", num_steps=20)
    job_id = one.client.post("/v2/flux-pulid", json=slow).json()["request_id"]
    wait_for(lambda: status_of(two, job_id) == "PROCESSING")
    assert two.client.post("/v2/flux-pulid", json=slow).status_code == 200
    refused = two.client.post("/v2/flux-pulid", json=slow)  # two unfinished ones, at two servers
    assert (refused.status_code, "unfinished jobs" in refused.json()["error"]) == (429, True)
    one.kill()
    killed = time.monotonic()
    lease = ends.rows()[job_id]["media_id"]
    wait_for(lambda: ends.rows()[job_id]["media_id"] != lease)
    assert time.monotonic() - killed < LEASE_S + 5
    wait_for(lambda: status_of(two, job_id) == "COMPLETED")
    answer = two.client.get(f"/v2/requests/{job_id}").json()
    assert two.client.get(answer["output"]).status_code == 200
    assert ends.rows()[job_id]["tries"] == 2

    postgres.kill()
    try:
        asked = two.client.get(f"/v2/requests/{job_id}/status")
        sent = two.client.post("/v2/flux-pulid", json=slow)
        ready = two.client.get("/ready")
        assert [answer.status_code for answer in (asked, sent, ready)] == [503, 503, 503]
        assert "database does not answer" in asked.json()["error"]
        assert two.client.get("/health").status_code == 200
    finally:
        postgres.start()
    wait_for(lambda: two.client.get("/ready").status_code == 200)
    assert status_of(two, job_id) == "COMPLETED"
    assert two.client.post("/v1/flux-pulid", json=a_request("portrait")).status_code == 200
