"""From a body to an accepted job, the same for v1 and v2: its key's place, then the job service."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, nullcontext

from fastapi import Request

from server.jobs.job import Api, JobRecord, KeyHasEnough
from server.jobs.service import JobService
from server.security.rate_limit import Budget


class SubmitTurns:
    """One submit of a key after the other, where the number of its unfinished jobs is limited.

    Two at the same time would both find the last place free.
    """

    def __init__(self, concurrency_per_key: int) -> None:
        self._is_limited = concurrency_per_key > 0
        self._locks = defaultdict[str, asyncio.Lock](asyncio.Lock)

    def turn_of(self, key: str) -> AbstractAsyncContextManager[None]:
        return self._locks[key] if self._is_limited else nullcontext()


async def accept(
    request: Request,
    service: JobService,
    body: bytes,
    *,
    key: str,
    api: Api,
    deadline_s: float,
    idempotency_key: str | None = None,
) -> JobRecord:
    """The record of the job. Raises RateLimited and what JobService.submit raises."""
    turns: SubmitTurns = request.app.state.submit_turns
    budget: Budget = request.app.state.budget
    async with turns.turn_of(key):
        budget.require_place(key)
        try:
            return await service.submit(
                body,
                key=key,
                api=api,
                deadline_s=deadline_s,
                idempotency_key=idempotency_key,
                trace=request.scope["state"].get("trace"),
            )
        except KeyHasEnough as exc:  # at other servers
            raise budget.no_place(key) from exc
