"""Jobs a minute and unfinished jobs of one key, by a clock the test turns."""

import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.security.rate_limit import Budget, RateLimited, RateLimiter, utc_in


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refused(action, *arguments):
    with pytest.raises(RateLimited) as caught:
        action(*arguments)
    return caught.value


def wait_of(limiter, key):
    """Take one; 0, or the seconds to wait."""
    try:
        limiter.take(key)
    except RateLimited as exc:
        return exc.retry_after_s
    return 0


# a minute


def test_a_key_may_have_its_minute_at_once_and_then_waits_for_each(clock):
    limiter = RateLimiter(6, clock=clock)
    assert [limiter.take("a") for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    assert refused(limiter.take, "a").retry_after_s == 10
    clock.now += 9.9
    assert refused(limiter.take, "a").retry_after_s == 1
    clock.now += 0.1
    assert limiter.take("a") == 0
    clock.now += 60
    assert limiter.take("a") == 5


def test_a_refused_request_costs_nothing(clock):
    limiter = RateLimiter(1, clock=clock)
    limiter.take("a")
    waits = [refused(limiter.take, "a").retry_after_s for _ in range(100)]
    assert set(waits) == {60}


def test_keys_have_nothing_to_do_with_each_other(clock):
    limiter = RateLimiter(1, clock=clock)
    limiter.take("a")
    refused(limiter.take, "a")
    assert limiter.take("b") == 0


@given(st.integers(1, 600), st.lists(st.floats(0, 20), max_size=100))
def test_who_comes_back_after_the_time_it_was_told_is_served(per_minute, pauses):
    clock = Clock()
    limiter = RateLimiter(per_minute, clock=clock)
    for pause in pauses:
        clock.now += pause
        wait_s = wait_of(limiter, "a")
        assert wait_s in range(61)
        clock.now += wait_s
        assert wait_s == 0 or wait_of(limiter, "a") == 0


@given(st.integers(1, 60), st.lists(st.floats(0, 5), max_size=200))
def test_no_more_are_served_than_a_full_bucket_and_what_the_time_gave(per_minute, pauses):
    clock = Clock()
    limiter = RateLimiter(per_minute, clock=clock)
    served = 0
    for pause in pauses:
        clock.now += pause
        served += wait_of(limiter, "a") == 0
    assert served <= per_minute + (clock.now - 1000) * per_minute / 60 + 1e-6


def test_memory_holds_only_the_keys_of_the_last_minute(clock):
    limiter = RateLimiter(5, clock=clock)

    def let_keys_come(numbers):
        for number in numbers:
            clock.now += 1
            limiter.take(f"key-{number}")

    let_keys_come(range(100))
    tracemalloc.start()
    let_keys_come(range(100, 10_000))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000  # bytes; it would be millions


def test_a_key_that_stays_is_not_forgotten_with_the_others(clock):
    limiter = RateLimiter(2, clock=clock)
    limiter.take("a")
    limiter.take("b")
    clock.now += 15
    limiter.take("a")
    clock.now += 50
    limiter.take("c")
    assert limiter.take("a") == 1


# unfinished jobs


def test_a_key_may_have_so_many_unfinished_jobs(clock):
    unfinished = {"a": 2, "b": 1}
    budget = Budget(per_minute=0, concurrency=2, unfinished_of=unfinished.__getitem__, clock=clock)
    assert "2 unfinished jobs" in str(refused(budget.spend, "a"))
    assert refused(budget.require_place, "a").retry_after_s >= 1
    assert budget.spend("b") == {}
    unfinished["a"] = 1
    assert budget.spend("a") == {}


def test_a_submit_refused_for_its_place_costs_nothing_of_the_minute(clock):
    unfinished = [1]
    budget = Budget(per_minute=2, concurrency=1, unfinished_of=lambda key: unfinished[0], clock=clock)
    for _ in range(5):
        refused(budget.spend, "a")
    unfinished[0] = 0
    assert budget.spend("a")["x-rate-limit-remaining"] == "1"


def test_without_limits_nothing_is_asked_and_nothing_told():
    def never(key):
        raise AssertionError

    budget = Budget(per_minute=0, concurrency=0, unfinished_of=never)
    assert [budget.spend("a") for _ in range(1000)] == [{}] * 1000


def test_the_hour_of_the_reset_is_never_too_early():
    for seconds in (0.0, 0.2, 10.0, 59.999):
        before = datetime.now(UTC)
        told = datetime.fromisoformat(utc_in(seconds))
        assert told.microsecond == 0
        assert seconds - 0.001 <= (told - before).total_seconds() <= seconds + 1.1


# over HTTP


def test_what_is_left_is_on_every_success_and_beyond_it_429_says_when(walled, assert_refused, clock):
    app = walled(api_keys="a:key-a,b:key-b", rate_limit=2, clock=clock)
    first = app.post("/paint", {"x-api-key": "key-a"})
    assert (first.status_code, first.headers["x-rate-limit-remaining"]) == (200, "1")
    assert app.post("/paint", {"x-api-key": "key-a"}).headers["x-rate-limit-remaining"] == "0"
    refusal = app.post("/paint", {"x-api-key": "key-a"})
    assert_refused(refusal, 429, "2 jobs a minute")
    assert refusal.headers["retry-after"] == "30"
    reset = datetime.fromisoformat(refusal.headers["x-rate-limit-reset-at-utc"])
    assert 29 <= (reset - datetime.now(UTC)).total_seconds() <= 31
    assert app.post("/paint", {"x-api-key": "key-b"}).status_code == 200
    clock.now += 30
    assert app.post("/paint", {"x-api-key": "key-a"}).status_code == 200


def test_a_caller_without_a_key_uses_up_nobodys_minute(walled, assert_refused):
    app = walled(api_keys="a:key-a", rate_limit=1)
    for headers in ({}, {"x-api-key": "wrong"}):
        assert_refused(app.post("/paint", headers), 401)
    assert app.post("/paint", {"x-api-key": "key-a"}).status_code == 200


def test_too_many_unfinished_jobs_are_429_with_a_hint(walled, assert_refused):
    app = walled(api_keys="a:key-a", concurrency_per_key=3, unfinished_of=lambda key: 3)
    refusal = app.post("/paint", {"x-api-key": "key-a"})
    assert_refused(refusal, 429, "3 unfinished jobs")
    assert int(refusal.headers["retry-after"]) >= 1


def test_without_keys_all_callers_share_one_budget(walled):
    app = walled(rate_limit=1)
    assert app.post("/paint").status_code == 200
    assert app.post("/paint", {"x-api-key": "another"}).status_code == 429


def test_without_a_limit_no_header_speaks_of_one(walled):
    assert not [name for name in walled().post("/paint").headers if name.startswith("x-rate-limit")]


def test_the_texts_speak_of_a_key_only_where_there_is_one():
    limiter = RateLimiter(1)
    for key, who in (("alice", "This API key"), ("", "Callers")):
        limiter.take(key)
        with pytest.raises(RateLimited, match=f"{who} may submit 1 jobs a minute"):
            limiter.take(key)
        budget = Budget(per_minute=0, concurrency=1, unfinished_of=lambda key: 1)
        with pytest.raises(RateLimited, match=f"{who} may have 1 unfinished jobs"):
            budget.spend(key)
