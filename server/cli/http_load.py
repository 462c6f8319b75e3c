"""Calls v1 of a running server, a bounded number of times, and keeps what came back.

The driver behind `flux-pulid bench http`. An answer that says when to come back (429, 503) is obeyed and
counted, a few times for each call. Holds no picture: an answer is read to its end and dropped. Knows no
terminal and no engine; what it is asked to do is the caller's to bound.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from pulid.errors import SetupError

MAX_WAITS = 20  # of one call that is told to come back later
LONGEST_WAIT_S = 30.0
DEFAULT_WAIT_S = 1.0  # where the answer does not say how long
COME_BACK = (429, 503)
READY_S = 10.0
MAX_TEXT = 200  # characters of an error that are kept

Size = tuple[int, int]  # width and height


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    url: str  # of the server, without a path
    api_key: str | None = field(default=None, repr=False)
    photo: bytes = field(repr=False)
    prompt: str
    sizes: Sequence[Size]  # asked for in turn
    num_steps: int
    requests: int
    parallel: int
    duration_s: float  # after this no call is begun
    timeout_s: float  # for one answer

    def body(self, size: Size, seed: int) -> dict[str, Any]:
        width, height = size
        return {
            "main_face_image": base64.b64encode(self.photo).decode("ascii"),
            "prompt": self.prompt,
            "width": width,
            "height": height,
            "num_steps": self.num_steps,
            "seed": seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What became of one call, with its last answer."""

    size: Size
    status: int | None  # None: no answer came
    seconds: float  # of the last attempt, waits not counted
    generation_s: float | None = None  # as the server tells it
    error: str = ""

    @property
    def is_picture(self) -> bool:
        return self.status == 200


@dataclass(slots=True)
class Load:
    """All that came back until now."""

    calls: list[Call] = field(default_factory=list)
    waits: Counter[int] = field(default_factory=Counter)  # by status
    seconds: float = 0.0  # from the first call on


def ready_answer(url: str) -> Mapping[str, str]:
    """Profile, device and notice of the server. Raises SetupError when it would not paint now."""
    try:
        answer = httpx.get(f"{url}/ready", timeout=READY_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise SetupError(
            f"No server answers at {url} ({type(exc).__name__}). Start one with `flux-pulid serve`, or name "
            "another with --url."
        ) from exc
    told = json_of(answer)
    if answer.status_code == 503 and told.get("error"):
        raise SetupError(f"The server at {url} is not ready: {told['error']} Try again when it is.")
    if answer.status_code != 200 or told.get("status") != "ready":
        raise SetupError(
            f"What answers at {url} is not this server: /ready gave status {answer.status_code}. Check --url."
        )
    return {name: str(told.get(name, "")) for name in ("profile", "device", "notice")}


async def drive(plan: LoadPlan, load: Load, on_call: Callable[[Call], None]) -> None:
    """Fills `load` as answers come, so that a caller who stops this has what was done."""
    jobs = zip(range(plan.requests), itertools.cycle(plan.sizes), strict=False)
    headers = {} if plan.api_key is None else {"x-api-key": plan.api_key}
    limits = httpx.Limits(max_connections=plan.parallel)
    started = time.monotonic()
    async with httpx.AsyncClient(
        base_url=plan.url, headers=headers, timeout=plan.timeout_s, limits=limits, trust_env=False
    ) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(plan.parallel, plan.requests)):
                    group.create_task(_work(plan, client, jobs, load, on_call, started + plan.duration_s))
        finally:
            load.seconds = time.monotonic() - started


async def _work(
    plan: LoadPlan,
    client: httpx.AsyncClient,
    jobs: Iterator[tuple[int, Size]],
    load: Load,
    on_call: Callable[[Call], None],
    deadline: float,
) -> None:
    for number, size in jobs:
        if time.monotonic() >= deadline:
            return
        call = await _call(plan, client, size, number, load, deadline)
        load.calls.append(call)
        on_call(call)


async def _call(
    plan: LoadPlan, client: httpx.AsyncClient, size: Size, seed: int, load: Load, deadline: float
) -> Call:
    """One call, again as long as the server says so, and within bounds."""
    body = json.dumps(plan.body(size, seed)).encode()
    for left in reversed(range(MAX_WAITS + 1)):
        started = time.perf_counter()
        try:
            answer = await client.post(
                "/v1/flux-pulid", content=body, headers={"content-type": "application/json"}
            )
        except httpx.HTTPError as exc:
            seconds = time.perf_counter() - started
            return Call(size=size, status=None, seconds=seconds, error=type(exc).__name__)
        seconds = time.perf_counter() - started
        wait = wait_of(answer)
        if answer.status_code not in COME_BACK or not left or time.monotonic() + wait >= deadline:
            break
        load.waits[answer.status_code] += 1
        await asyncio.sleep(wait)
    return call_of(answer, size, seconds)


def wait_of(answer: httpx.Response) -> float:
    """Seconds until the server wants to be asked again."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() else DEFAULT_WAIT_S


def call_of(answer: httpx.Response, size: Size, seconds: float) -> Call:
    if answer.status_code != 200:
        text = str(json_of(answer).get("error") or f"status {answer.status_code}")[:MAX_TEXT]
        return Call(size=size, status=answer.status_code, seconds=seconds, error=text)
    generation = answer.headers.get("x-generation-time")
    return Call(
        size=size, status=200, seconds=seconds, generation_s=None if generation is None else float(generation)
    )


def json_of(answer: httpx.Response) -> Mapping[str, Any]:
    """The object in an answer; empty where there is none."""
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


# ---- what is told of it ----


def report(load: Load) -> dict[str, Any]:
    """Figures over all calls that gave a picture, and counts over all calls."""
    painted = [call for call in load.calls if call.is_picture]
    sizes = sorted({call.size for call in load.calls})
    return {
        "seconds": round(load.seconds, 3),
        "calls": len(load.calls),
        **figures(painted, load.seconds),
        "sizes": {
            f"{width}x{height}": figures(
                [call for call in painted if call.size == (width, height)], load.seconds
            )
            for width, height in sizes
        },
        "statuses": dict(Counter(str(call.status or "no answer") for call in load.calls)),
        "told_to_come_back": {str(status): count for status, count in load.waits.items()},
        "errors": dict(Counter(call.error for call in load.calls if call.error).most_common()),
    }


def figures(painted: Sequence[Call], seconds: float) -> dict[str, Any]:
    generations = [call.generation_s for call in painted if call.generation_s is not None]
    return {
        "pictures": len(painted),
        "pictures_per_s": round(len(painted) / seconds, 4) if seconds else 0.0,
        "call_s": percentiles([call.seconds for call in painted]),
        "generation_s": percentiles(generations),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank, so each is a value that was measured; empty for no values."""
    ranked = sorted(values)
    return {
        f"p{percent}": round(ranked[math.ceil(len(ranked) * percent / 100) - 1], 4)
        for percent in (50, 95, 99)
        if ranked
    }
