"""How much one API key may ask for: jobs a minute, and jobs that are not finished at once.

A token bucket for each key, with the clock handed in. A bucket that is full again is forgotten, so
memory is bounded by the keys of the last minute. Knows no queue: how many jobs of a key are
unfinished is asked of a callable. Where there are no keys, all callers together are the key "".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request

from pulid.errors import PulidError
from server.security.auth import require_key

_MINUTE_S = 60.0
_PLACE_RETRY_S = 10  # about one picture


class RateLimited(PulidError):
    """This key has asked for too much. Others are served."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            "retry-after": str(self.retry_after_s),
            "x-rate-limit-reset-at-utc": utc_in(self.retry_after_s),
        }


@dataclass(frozen=True, slots=True)
class _Bucket:
    tokens: float
    at: float  # when it held them


class RateLimiter:
    """`per_minute` requests a minute for each key, all of them at once if it likes."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # the longest unused first; a key without one has a full one

    def take(self, key: str) -> int:
        """Count one request. How many more are left now. Raises RateLimited."""
        now = self._clock()
        self._forget_full_ones(now)
        tokens = self._tokens(key, now)
        if tokens < 1:
            wait_s = (1 - tokens) * _MINUTE_S / self._capacity
            raise RateLimited(
                f"{_who(key)} may submit {self._capacity} jobs a minute. Try again when Retry-After says.",
                retry_after_s=max(1, math.ceil(wait_s)),
            )
        self._buckets.pop(key, None)
        self._buckets[key] = _Bucket(tokens - 1, now)
        return int(tokens - 1)

    def full_again_in(self, key: str) -> float:
        """Seconds until the key has all of its requests back."""
        return (self._capacity - self._tokens(key, self._clock())) * _MINUTE_S / self._capacity

    def _tokens(self, key: str, now: float) -> float:
        bucket = self._buckets.get(key, _Bucket(self._capacity, now))
        return min(self._capacity, bucket.tokens + (now - bucket.at) * self._capacity / _MINUTE_S)

    def _forget_full_ones(self, now: float) -> None:
        for key, bucket in list(self._buckets.items()):
            if now - bucket.at < _MINUTE_S:
                return
            del self._buckets[key]


class Budget:
    """Both limits of a key; 0 means no limit.

    `unfinished_of` tells how many jobs of a key wait or run, those just being submitted included.
    """

    def __init__(
        self,
        *,
        per_minute: int,
        concurrency: int,
        unfinished_of: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiter = RateLimiter(per_minute, clock=clock) if per_minute else None
        self._concurrency = concurrency
        self._unfinished_of = unfinished_of

    def spend(self, key: str) -> Mapping[str, str]:
        """Count a submit. The headers that tell what is left. Raises RateLimited."""
        self.require_place(key)  # first: a submit that is refused for this costs nothing
        if self._limiter is None:
            return {}
        remaining = self._limiter.take(key)
        return {
            "x-rate-limit-remaining": str(remaining),
            "x-rate-limit-reset-at-utc": utc_in(self._limiter.full_again_in(key)),
        }

    def require_place(self, key: str) -> None:
        """Raises RateLimited when the key has as many unfinished jobs as it may."""
        if self._concurrency and self._unfinished_of(key) >= self._concurrency:
            raise self.no_place(key)

    def no_place(self, key: str) -> RateLimited:
        return RateLimited(
            f"{_who(key)} may have {self._concurrency} unfinished jobs. Try again when one has ended.",
            retry_after_s=_PLACE_RETRY_S,
        )


def _who(key: str) -> str:
    return "This API key" if key else "Callers"


def utc_in(seconds: float) -> str:
    """The time in so many seconds as ISO 8601, never earlier than that."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    if moment.microsecond:
        moment += timedelta(seconds=1)
    return moment.isoformat(timespec="seconds")


async def require_budget(request: Request, key: Annotated[str, Depends(require_key)]) -> None:
    """Count this call against its key, before its body is read. Raises RateLimited.

    What is left goes into `request.state.rate_limit_headers`, for the answer.
    """
    budget: Budget = request.app.state.budget
    request.state.rate_limit_headers = budget.spend(key)
