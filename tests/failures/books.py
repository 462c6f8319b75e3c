"""What a server has promised, and what became of it: accepted jobs, their ends, their pictures.

`Books` submits v2 jobs, over as many lives of a server as a test likes, and settles them at the end.
`Undisturbed` says which picture is the right one. Knows the wire alone, as a caller does.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from live_server import ServerProcess, faceless

PATIENCE_S = 40.0
ENDED = ("COMPLETED", "FAILED")

Request = dict[str, Any]


def a_request(prompt: str = "a portrait", *, seed: int = 1, num_steps: int = 3, **more: object) -> Request:
    """A small picture, without loss, so that it can be compared."""
    return {
        "main_face_image": faceless(),
        "prompt": prompt,
        "seed": seed,
        "num_steps": num_steps,
        "width": 256,
        "height": 256,
        "output_format": "png",
        **more,
    }


class Undisturbed:
    """A server that nothing happens to: what it paints for a request is right."""

    def __init__(self, server: ServerProcess) -> None:
        self._client = server.client
        self._pictures: dict[str, bytes] = {}

    def picture_of(self, request: Request) -> bytes:
        name = json.dumps(request, sort_keys=True)
        if name not in self._pictures:
            answer = self._client.post("/v1/flux-pulid", json=request)
            self._pictures[name] = answer.raise_for_status().content
        return self._pictures[name]


@dataclass
class Books:
    accepted: dict[str, Request] = field(default_factory=dict)  # by id; the server had said yes
    ends: dict[str, str] = field(default_factory=dict)  # by id
    errors: dict[str, str] = field(default_factory=dict)  # by id of a FAILED job
    lost: list[str] = field(default_factory=list)  # nobody knows the id any more
    unended: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # another picture than an undisturbed run's

    def submit(self, client: httpx.Client, prompt: str = "a portrait", **more: Any) -> str:
        request = a_request(prompt, **more)
        answer = client.post("/v2/flux-pulid", json=request).raise_for_status().json()
        self.accepted[answer["request_id"]] = request
        return str(answer["request_id"])

    def settle(self, client: httpx.Client, undisturbed: Undisturbed) -> Books:
        """Follow every accepted job to its end, and look at its picture."""
        deadline = time.monotonic() + PATIENCE_S
        for job_id, request in self.accepted.items():
            answer = self._end_of(client, job_id, deadline)
            if answer is None:
                continue
            self.ends[job_id] = answer["status"]
            if answer["status"] == "FAILED":
                self.errors[job_id] = answer["error"]
            elif client.get(answer["output"]).content != undisturbed.picture_of(request):
                self.wrong.append(job_id)
        return self

    def _end_of(self, client: httpx.Client, job_id: str, deadline: float) -> dict[str, Any] | None:
        while True:
            answer = client.get(f"/v2/requests/{job_id}")
            if answer.status_code == 404:
                self.lost.append(job_id)
                return None
            body: dict[str, Any] = answer.json()
            if body["status"] in ENDED:
                return body
            if time.monotonic() > deadline:
                self.unended.append(job_id)
                return None
            time.sleep(0.02)

    @property
    def all_is_well(self) -> bool:
        """Every accepted job is COMPLETED with the right picture."""
        return self.nothing_is_lost and set(self.ends.values()) <= {"COMPLETED"}

    @property
    def nothing_is_lost(self) -> bool:
        """Every accepted job has ended, and no picture is wrong."""
        return not (self.lost or self.unended or self.wrong) and len(self.ends) == len(self.accepted)

    def __str__(self) -> str:
        ends = Counter(self.ends.values())
        good = f"{len(self.accepted)} jobs accepted, {ends['COMPLETED']} completed, {ends['FAILED']} failed"
        bad = f"{len(self.lost)} lost, {len(self.unended)} without an end, {len(self.wrong)} wrong pictures"
        return f"{good}, {bad} {sorted({*self.errors.values()}) or ''}".rstrip()


def status_of(client: httpx.Client, job_id: str) -> str:
    return str(client.get(f"/v2/requests/{job_id}/status").json()["status"])
