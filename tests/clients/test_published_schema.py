"""Calls made from the server's own OpenAPI document, valid ones and broken ones: never a 5xx.

Schemathesis makes them up. Some job ids are replaced by real ones, and some requests get a real
photo and a small size, so that not everything ends at the first check. 503 counts as a fault here:
this server has nothing to be busy with.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fakes import Script
from live_server import ServerProcess, live_server, portrait

STREAMS = {"/v2/requests/{request_id}/events"}  # end when their job does
PAINTABLE = {"main_face_image": portrait(), "width": 256, "height": 256}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory) -> Iterator[ServerProcess]:
    """Its engine answers at once. Photos it cannot fetch are refused in a moment."""
    folder = tmp_path_factory.mktemp("schema")
    script = Script(folder / "script")
    script.folder.mkdir()
    with live_server(
        folder / "data",
        scripted=script,
        adapters=("openai", "replicate"),
        max_queued_jobs=10_000,
        fetch_timeout_s=0.5,
        log_level="warning",
    ) as live:
        yield live


@pytest.fixture(scope="module")
def job_ids(quick_server: ServerProcess) -> list[str]:
    """A job that is done and one that FAILED."""
    good = {**PAINTABLE, "prompt": "portrait", "num_steps": 1}
    answers = [quick_server.client.post("/v2/flux-pulid", json=body) for body in (good, {})]
    return [answer.raise_for_status().json()["request_id"] for answer in answers]


def call_everything(server: ServerProcess, job_ids: list[str], *, examples: int) -> Counter[str]:
    """So many valid and so many broken calls of each operation; how often each answered what."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=10)
    statuses: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in STREAMS:
            continue
        # Any text is a valid path, so only bodies can be wrong in form.
        for mode in GenerationMode if operation.body else (GenerationMode.POSITIVE,):
            call_operation(operation, mode, server.url, job_ids, examples, statuses)
    return statuses


def call_operation(operation, mode, url, job_ids, examples, statuses) -> None:
    @given(
        case=operation.as_strategy(generation_mode=mode),
        job_id=st.none() | st.sampled_from(job_ids),
        is_paintable=st.booleans(),
    )
    @settings(
        max_examples=examples,
        deadline=timedelta(seconds=10),
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def call(case, job_id, is_paintable):
        for name in {"request_id", "prediction_id"} & case.path_parameters.keys():
            case.path_parameters[name] = job_id or case.path_parameters[name]
        if is_paintable and isinstance(case.body, dict):
            case.body |= PAINTABLE
        response = case.call(base_url=url, timeout=20)
        statuses[f"{operation.path} {response.status_code}"] += 1
        case.validate_response(response, checks=CHECKS)
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.status_code} {response.text}"

    call()


def report(answers: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    statuses: Counter[str] = Counter()
    for answer, count in answers.items():
        statuses[answer.rpartition(" ")[2]] += count
    with capsys.disabled():
        sys.stdout.write(f"\nschema: {answers.total()} calls, {dict(sorted(statuses.items()))}\n")


def test_no_call_that_the_schema_suggests_ends_in_a_fault(quick_server, job_ids, capsys):
    statuses = call_everything(quick_server, job_ids, examples=30)
    report(statuses, capsys)
    for answer in ("/v1/flux-pulid 200", "/v1/flux-pulid 400", "/v2/requests/{request_id}/status 422"):
        assert statuses[answer], f"never seen: {answer}"


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_no_call_of_very_many_ends_in_a_fault(quick_server, job_ids, capsys):
    report(call_everything(quick_server, job_ids, examples=500), capsys)
