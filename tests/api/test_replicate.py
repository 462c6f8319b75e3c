"""The adapter `replicate`: predictions as a Cog container and as api.replicate.com answer for them."""

import base64
import re
import threading
from datetime import datetime

import httpx
import pytest

ALICE = {"authorization": "Bearer alice-key"}
BOB = {"authorization": "Token bob-key"}  # the scheme of old clients
COG, HOSTED = "/predictions", "/v1/predictions"
BOTH = pytest.mark.parametrize("address", [COG, HOSTED])
SYNC = {COG: {}, HOSTED: {"prefer": "wait"}}
ASYNC = {COG: {"prefer": "respond-async"}, HOSTED: {}}
STATUS = {COG: {"sync": 200, "async": 202}, HOSTED: {"sync": 201, "async": 201}}


@pytest.fixture(scope="module")
def server(run_server):
    with run_server(adapters=("replicate",), api_keys=("alice:alice-key", "bob:bob-key")) as live:
        yield live


@pytest.fixture
def gated(run_server):
    """Its engine waits for the test before each step."""
    with run_server(adapters=("replicate",), script={"gated": True}) as live:
        yield live


def predict(server, address, headers=ALICE, **parameters):
    return server.client.post(address, json={"input": server.body(**parameters)}, headers=headers)


def ask(server, address, prediction_id, headers=ALICE):
    return server.client.get(f"{address}/{prediction_id}", headers=headers)


def cancel(server, address, prediction_id, headers=ALICE):
    return server.client.post(f"{address}/{prediction_id}/cancel", headers=headers)


def wait_for(server, address, prediction_id, *words, headers=ALICE):
    server.wait_until(lambda: ask(server, address, prediction_id, headers).json()["status"] in words)
    return ask(server, address, prediction_id, headers).json()


def pictures(prediction):
    """The bytes of every picture, however the output carries them."""
    found = []
    for output in prediction["output"]:
        kind, comma, text = output.partition(";base64,")
        if comma:
            assert kind == "data:image/webp"
            found.append(base64.b64decode(text, validate=True))
        else:
            found.append(httpx.get(output, trust_env=False).content)  # without a key
    return found


def seconds_of(moment):
    return datetime.fromisoformat(moment).timestamp()


# success


@BOTH
def test_a_call_that_waits_gets_the_picture_that_v1_paints(server, address):
    response = predict(server, address, ALICE | SYNC[address], seed=7)
    assert response.status_code == STATUS[address]["sync"]
    prediction = response.json()
    assert prediction["status"] == "succeeded"
    assert pictures(prediction) == [server.paint(headers=ALICE, seed=7).content]


@BOTH
def test_a_call_that_does_not_wait_polls_for_the_same_picture(server, address):
    response = predict(server, address, ALICE | ASYNC[address], seed=8)
    assert response.status_code == STATUS[address]["async"]
    submitted = response.json()
    assert submitted["status"] in ("starting", "processing", "succeeded")
    prediction = wait_for(server, address, submitted["id"], "succeeded")
    assert pictures(prediction) == [server.paint(headers=ALICE, seed=8).content]


def test_the_urls_of_a_prediction_stay_at_the_address_that_was_called(server):
    for address in (COG, HOSTED):
        prediction = predict(server, address, ALICE | ASYNC[address]).json()
        url = f"{server.url}{address}/{prediction['id']}"
        assert prediction["urls"] == {"get": url, "cancel": f"{url}/cancel"}
        assert httpx.get(url, headers=ALICE, trust_env=False).json()["id"] == prediction["id"]


def test_under_json_the_urls_keep_the_mount(server):
    prediction = predict(server, "/json" + HOSTED).json()
    assert prediction["urls"]["get"] == f"{server.url}/json{HOSTED}/{prediction['id']}"
    assert httpx.get(prediction["urls"]["get"], headers=ALICE, trust_env=False).status_code == 200


@BOTH
def test_several_outputs_are_the_pictures_of_v1_in_their_order(server, address):
    prediction = predict(server, address, ALICE | SYNC[address], seed=20, num_outputs=3).json()
    v1 = server.paint("/json/v1/flux-pulid", ALICE, seed=20, num_outputs=3).json()
    assert pictures(prediction) == [base64.b64decode(picture) for picture in v1["images"]]


def test_the_address_of_a_model_takes_the_same_call_whatever_its_name(server):
    response = predict(server, "/v1/models/someone/flux-pulid/predictions", ALICE | SYNC[HOSTED], seed=7)
    assert response.status_code == 201
    assert pictures(response.json()) == [server.paint(headers=ALICE, seed=7).content]


def test_a_prediction_has_what_clients_read(server):
    prediction = predict(server, COG, seed=1).json()
    assert re.fullmatch(r"[0-9a-f]{32}", prediction["id"])
    assert prediction["model"] == "flux-pulid"
    assert prediction["version"]
    assert prediction["error"] is None
    assert prediction["input"] == {}  # nothing of the caller comes back
    assert prediction["logs"] == f"100%|{'#' * 20}| 1/1\n"
    created, started, completed = (
        seconds_of(prediction[name]) for name in ("created_at", "started_at", "completed_at")
    )
    assert created <= started <= completed
    assert prediction["metrics"]["predict_time"] == pytest.approx(completed - started, abs=0.002)
    assert prediction["metrics"]["total_time"] == pytest.approx(completed - created, abs=0.002)


def test_likeness_is_among_the_metrics_where_it_was_asked_for(server):
    told = predict(server, COG, prompt="alike 0.7 none", identity_similarity=True).json()["metrics"]
    [[first, second]] = told["identity_similarity"]
    assert first == pytest.approx(0.7, abs=0.1)
    assert second is None
    assert "identity_similarity" not in predict(server, COG).json()["metrics"]


def test_version_and_unknown_fields_beside_the_input_are_ignored(server):
    body = {"input": server.body(), "version": "8baa7ef2", "stream": False, "webhook": None}
    assert server.client.post(HOSTED, json=body, headers=ALICE).status_code == 201


# on its way


def test_logs_show_a_bar_that_clients_read_as_progress(gated):
    prediction_id = predict(gated, HOSTED, {}, num_steps=4).json()["id"]
    assert ask(gated, HOSTED, prediction_id).json()["logs"] == ""
    gated.engine.run_steps(3)
    gated.wait_until(lambda: "3/4" in ask(gated, HOSTED, prediction_id).json()["logs"])
    prediction = ask(gated, HOSTED, prediction_id).json()
    assert prediction["status"] == "processing"
    assert prediction["logs"] == f" 75%|{'#' * 15}     | 3/4\n"
    assert prediction["metrics"] is prediction["completed_at"] is prediction["output"] is None
    gated.engine.open_gate()


def test_a_wait_that_runs_out_says_starting_and_the_prediction_goes_on(gated):
    gated.engine.run_steps(1)  # of two: it is being processed when the wait is over
    response = predict(gated, HOSTED, {"prefer": "wait=1"}, num_steps=2)
    assert response.status_code == 201
    assert response.json()["status"] == "starting"
    prediction_id = response.json()["id"]
    assert ask(gated, HOSTED, prediction_id).json()["status"] == "processing"
    gated.engine.open_gate()
    wait_for(gated, HOSTED, prediction_id, "succeeded")


def test_a_wait_ends_when_the_server_goes_down_and_the_prediction_does_not(gated):
    answers = []
    caller = threading.Thread(target=lambda: answers.append(predict(gated, HOSTED, {"prefer": "wait=60"})))
    caller.start()
    gated.wait_until(lambda: gated.unfinished == 1)
    gated.app.state.service.begin_drain()
    caller.join(5)
    assert [answer.json()["status"] for answer in answers] == ["starting"]
    assert gated.unfinished == 1
    gated.engine.open_gate()


@BOTH
def test_a_prediction_that_waits_its_turn_is_starting(gated, address):
    predict(gated, address, ASYNC[address])
    waiting = predict(gated, address, ASYNC[address]).json()
    assert waiting["status"] == ask(gated, address, waiting["id"]).json()["status"] == "starting"
    assert waiting["started_at"] is None
    gated.engine.open_gate()


# cancel


@BOTH
def test_a_cancelled_prediction_is_canceled(gated, address):
    prediction_id = predict(gated, address, ASYNC[address]).json()["id"]
    response = cancel(gated, address, prediction_id)
    assert response.status_code == 200
    assert response.json()["status"] == ask(gated, address, prediction_id).json()["status"] == "canceled"
    gated.engine.open_gate()


def test_cancelling_an_ended_prediction_keeps_it_and_its_pictures(server):
    prediction = predict(server, HOSTED, ALICE | SYNC[HOSTED]).json()
    assert cancel(server, HOSTED, prediction["id"]).json() == prediction
    assert ask(server, HOSTED, prediction["id"]).json() == prediction
    assert len(pictures(prediction)[0]) > 0


def test_a_caller_of_cog_s_address_that_leaves_takes_its_job_with_it(gated):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gated.url}{COG}", json={"input": gated.body()}, timeout=0.5, trust_env=False)
    gated.wait_until(lambda: gated.unfinished == 0)
    gated.engine.open_gate()


def test_a_call_that_waits_hears_that_another_call_cancelled_it(gated):
    answers = []
    caller = threading.Thread(target=lambda: answers.append(predict(gated, HOSTED, SYNC[HOSTED])))
    caller.start()
    gated.wait_until(lambda: gated.engine.admitted)
    [prediction_id] = gated.engine.admitted
    cancel(gated, HOSTED, prediction_id)
    caller.join(5)
    assert answers[0].json()["status"] == "canceled"
    gated.engine.open_gate()


# refused


@BOTH
def test_a_photo_without_a_face_makes_a_failed_prediction(server, address):
    prediction = predict(server, address, ALICE | SYNC[address], prompt="no face").json()
    assert prediction["status"] == "failed"
    assert prediction["output"] is None
    assert prediction["error"] == server.paint(headers=ALICE, prompt="no face").json()["error"]


def test_a_wrong_parameter_is_400_where_cog_s_address_waits_and_else_a_failed_prediction(server):
    text = "width must be a whole number from 256 to 1536."
    refused = predict(server, COG, width=1)
    assert refused.status_code == 400
    assert refused.json()["detail"] == refused.json()["error"] == text
    assert refused.json()["fields"] == [{"field": "width", "message": text}]
    for failed in (predict(server, HOSTED, width=1), predict(server, COG, ALICE | ASYNC[COG], width=1)):
        assert (failed.json()["status"], failed.json()["error"]) == ("failed", text)


@BOTH
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "input must be an object"),
        ({"input": "portrait"}, "input must be an object"),
        ({"input": {}, "webhook": "https://example.com/"}, "webhook is not served here"),
        ({"input": {}, "output_file_prefix": "https://example.com/"}, "output_file_prefix is not"),
        ([{"input": {}}], "must be a JSON object"),
    ],
)
def test_a_body_of_another_form_is_400(server, address, body, told):
    response = server.client.post(address, json=body, headers=ALICE)
    assert response.status_code == 400
    assert told in response.json()["detail"]
    assert response.json()["status"] == 400


@BOTH
def test_numbers_and_depths_that_json_cannot_carry_on_are_400(server, address):
    deep = '{"input": {"prompt": ' + "[" * 900 + "]" * 900 + "}}"
    for text in ('{"input": {"width": 1e999}}', deep, '{"input": {"width": NaN}}', '{"input":'):
        headers = ALICE | {"content-type": "application/json"}
        response = server.client.post(address, content=text, headers=headers)
        answered = response.json()
        assert response.status_code == 400 or answered["status"] == "failed"
        assert answered["error"]


@BOTH
def test_a_call_without_a_known_key_is_401(server, address):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic alice-key"}):
        response = predict(server, address, headers)
        assert response.status_code == 401
        assert "API key" in response.json()["detail"]


@BOTH
def test_the_predictions_of_another_key_and_of_nobody_are_404(server, address):
    prediction_id = predict(server, address, ALICE | ASYNC[address]).json()["id"]
    wait_for(server, address, prediction_id, "succeeded")
    for told, headers in ((prediction_id, BOB), ("0" * 32, ALICE)):
        for response in (ask(server, address, told, headers), cancel(server, address, told, headers)):
            assert response.status_code == 404
            assert response.json()["detail"].startswith("There is no such request")
    assert ask(server, address, prediction_id).json()["status"] == "succeeded"


@BOTH
def test_another_method_is_405_in_the_form_of_this_interface(server, address):
    response = server.client.put(address, headers=ALICE)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["detail"] == response.json()["error"]


def test_strict_jobs_are_refused_at_the_submit(run_server):
    with run_server(adapters=("replicate",), v2_strict=True) as server:
        response = predict(server, HOSTED, {}, width=1)
        assert response.status_code == 400
        assert response.json()["detail"].startswith("width must be")


@BOTH
def test_the_rate_limit_of_a_key_holds(run_server, address):
    with run_server(adapters=("replicate",), rate_limit=1) as server:
        assert predict(server, address, {}).headers["x-rate-limit-remaining"] == "0"
        refused = predict(server, address, {})
        assert refused.status_code == refused.json()["status"] == 429
        assert int(refused.headers["retry-after"]) > 0


@BOTH
def test_a_body_that_is_too_large_is_413(run_server, address):
    with run_server(adapters=("replicate",), max_body_mb=0.001) as server:
        response = predict(server, address, {}, prompt="x" * 2000)
        assert response.status_code == 413
        assert "larger than 0.001 MB" in response.json()["detail"]
