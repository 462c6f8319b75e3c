"""Who may call what: every route asks for a key unless it is on the short list; jobs belong to keys."""

import threading
from datetime import UTC, datetime

import pytest
from fastapi.routing import iter_route_contexts

from fakes import PATIENCE_S

KEYS = ("alice:alice-key", "bob:bob-key")
ALICE, BOB = {"x-api-key": "alice-key"}, {"x-api-key": "bob-key"}
OPEN = {
    *("/", "/page/{asset}", "/health", "/ready", "/docs", "/docs/{asset}", "/openapi.json"),
    "/outputs/{media_id}/{name}",  # the link is the key
}
PATH_PARAMETERS = {"request_id": "0" * 32, "media_id": "0" * 32, "name": "0.webp", "asset": "docs.js"}


def addresses_of(app):
    """(method, template, path) of everything the app answers."""
    for context in iter_route_contexts(app.routes):
        for method in sorted(context.methods):
            yield method, context.path, context.path.format(**PATH_PARAMETERS)


def test_without_a_key_every_route_that_is_not_open_is_401(keyed_server):
    asked = 0
    for method, template, path in addresses_of(keyed_server.app):
        for address in (path, f"{path}/", f"/json{path}", f"{path}?x-api-key=alice-key"):
            response = keyed_server.client.request(method, address)
            assert (response.status_code == 401) == (template not in OPEN), (method, address)
            asked += response.status_code == 401
            if response.status_code == 401:
                assert "x-api-key" in response.json()["error"]
                assert "www-authenticate" in response.headers
    assert asked >= 4 * 9


def test_the_list_of_open_routes_names_routes_there_are(keyed_server):
    assert {template for _, template, _ in addresses_of(keyed_server.app)} > OPEN


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "alice"},
        {"x-api-key": "alice-key2"},
        {"x-api-key": "alice:alice-key"},
        {"Authorization": "Bearer nobody"},
        {"Authorization": "Basic YWxpY2Uta2V5"},
        {"x-api-key": "schlüssel".encode()},
    ],
    ids=str,
)
def test_a_wrong_key_is_401_before_anything_is_read(keyed_server, headers):
    for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
        response = keyed_server.client.post(path, content=b"not even JSON", headers=headers)
        assert response.status_code == 401
        assert "alice" not in response.text


def test_both_headers_carry_a_key(keyed_server):
    for headers in (ALICE, {"Authorization": "Bearer alice-key"}, {"authorization": "bearer  alice-key"}):
        assert keyed_server.paint(headers=headers).status_code == 200


def test_the_account_of_a_key_is_two_constants(keyed_server):
    for path in ("/v1/get-user-credits", "/json/v1/get-user-credits/"):
        response = keyed_server.client.get(path, headers=ALICE)
        assert response.json() == {"credits": 77, "free-credits": 77}
        assert keyed_server.client.get(path).status_code == 401


def test_a_job_is_there_for_its_own_key_alone(keyed_server):
    job_id = keyed_server.finished(ALICE)["request_id"]
    addresses = [
        ("GET", f"/v2/requests/{job_id}/status"),
        ("GET", f"/v2/requests/{job_id}"),
        ("GET", f"/v1/requests/{job_id}"),
        ("GET", f"/v2/requests/{job_id}/events"),
        ("DELETE", f"/v2/requests/{job_id}"),
    ]
    foreign = [keyed_server.client.request(*address, headers=BOB) for address in addresses]
    unknown = keyed_server.client.get(f"/v2/requests/{'0' * 32}", headers=BOB)
    for response in foreign:
        assert response.status_code == 404
        assert response.json()["error"] == unknown.json()["error"], "as if it did not exist"
    assert keyed_server.result(job_id, ALICE).status_code == 200


def test_an_idempotency_key_belongs_to_an_api_key(keyed_server):
    name = {"Idempotency-Key": "order-1"}
    ids = {keyed_server.submit(key | name, seed=1).json()["request_id"] for key in (ALICE, BOB)}
    assert len(ids) == 2
    assert keyed_server.submit(BOB | name, seed=2).status_code == 409


def test_metrics_need_a_key_unless_they_are_public(keyed_server, run_server):
    assert keyed_server.client.get("/metrics").status_code == 401
    assert keyed_server.client.get("/metrics", headers=BOB).status_code == 200
    with run_server(api_keys=KEYS, metrics_public=True) as server:
        assert server.client.get("/metrics").status_code == 200
        assert server.client.get("/v1/get-user-credits").status_code == 401


def test_without_keys_everything_is_open_on_this_machine(server):
    assert server.client.get("/v1/get-user-credits").status_code == 200
    assert server.client.get("/metrics").status_code == 200


def test_a_rate_limit_is_told_and_kept_for_each_key(run_server):
    with run_server(api_keys=KEYS, rate_limit=2) as server:
        remaining = []
        for path in ("/v1/flux-pulid", "/v2/flux-pulid"):
            response = server.paint(path, ALICE)
            assert response.status_code == 200
            assert response.headers["x-rate-limit-reset-at-utc"].endswith("+00:00")
            remaining.append(response.headers["x-rate-limit-remaining"])
        assert remaining == ["1", "0"]
        refusal = server.submit(ALICE)
        assert refusal.status_code == 429
        assert 0 < int(refusal.headers["retry-after"]) <= 60
        assert refusal.headers["x-rate-limit-reset-at-utc"].endswith("+00:00")
        assert server.submit(BOB).status_code == 200
        assert server.client.get("/v1/get-user-credits", headers=ALICE).status_code == 200


def test_a_refusal_says_in_both_headers_when_to_come_again(run_server):
    with run_server(api_keys=KEYS, rate_limit=2, script={"slow_to_load": True}, ready=False) as server:
        refusal = server.submit(ALICE)
        assert refusal.status_code == 503
        again = datetime.fromisoformat(refusal.headers["x-rate-limit-reset-at-utc"]) - datetime.now(UTC)
        assert abs(again.total_seconds() - int(refusal.headers["retry-after"])) < 5
        assert refusal.headers["x-rate-limit-remaining"] == "1"
        server.engine.let_load()


def test_a_key_may_have_no_more_unfinished_jobs_than_the_setting_says(run_server):
    with run_server(api_keys=KEYS, concurrency_per_key=3, script={"gated": True}) as server:
        answers = []
        callers = [threading.Thread(target=lambda: answers.append(server.submit(ALICE))) for _ in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE_S)
        accepted = [answer.json()["request_id"] for answer in answers if answer.status_code == 200]
        assert len(accepted) == 3, "also when they come at the same time"
        refusals = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in refusals} == {429}
        assert all("retry-after" in answer.headers for answer in refusals)
        assert server.submit(BOB).status_code == 200
        server.engine.open_gate()
        for job_id in accepted:
            server.wait_for_status(job_id, "COMPLETED", headers=ALICE)
        assert server.submit(ALICE).status_code == 200


def test_a_fault_is_told_to_the_page_that_called(keyed_server):
    """A browser shows a page only what is marked for it, errors included."""
    with keyed_server.broken():
        response = keyed_server.paint(headers=ALICE | {"origin": "https://app.example.com"})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == "*"
    assert "this request id" in response.json()["error"]
