"""The cache of identities, prompts and tables: bounded, forgetful, shared by threads."""

import threading

import pytest

from pulid.cache import LruCache

PATIENCE_S = 20.0


def keys_kept(cache, keys):
    """Which of `keys` the cache has; asked without a trace, since nothing that fails is kept."""

    def absent():
        raise KeyError

    kept = []
    for key in keys:
        try:
            kept.append(cache.get_or_make(key, absent))
        except KeyError:
            continue
    return kept


def test_a_value_is_made_once():
    cache, made = LruCache(2), []
    for _ in range(3):
        assert cache.get_or_make("a", lambda: made.append(1) or "A") == "A"
    assert len(made) == 1


def test_what_was_used_least_recently_is_forgotten_first():
    cache = LruCache(2)
    for key in ("a", "b", "a", "c"):
        cache.get_or_make(key, lambda key=key: key)
    assert len(cache) == 2
    assert keys_kept(cache, "abc") == ["a", "c"]


def test_nothing_is_kept_when_making_fails():
    cache = LruCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 // 0)
    assert len(cache) == 0
    assert cache.get_or_make("a", lambda: "A") == "A"


def test_a_thread_that_makes_a_value_keeps_no_other_waiting():
    cache, may_end = LruCache(4), threading.Event()
    cache.get_or_make("known", lambda: "K")
    slow = threading.Thread(target=cache.get_or_make, args=("slow", lambda: may_end.wait(PATIENCE_S)))
    slow.start()
    answers = []
    quick = threading.Thread(
        target=lambda: answers.extend(cache.get_or_make(key, lambda: "N") for key in ("known", "new"))
    )
    quick.start()
    quick.join(PATIENCE_S)
    still_slow = slow.is_alive()
    may_end.set()
    slow.join(PATIENCE_S)
    assert answers == ["K", "N"]
    assert still_slow


def test_two_threads_that_miss_the_same_key_share_one_value():
    cache, meeting = LruCache(4), threading.Barrier(2, timeout=PATIENCE_S)
    got = []

    def make():
        meeting.wait()  # both are here: both have missed
        return object()

    threads = [threading.Thread(target=lambda: got.append(cache.get_or_make("a", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(got) == 2
    assert got[0] is got[1] is cache.get_or_make("a", make)
    assert len(cache) == 1


def test_many_threads_never_exceed_the_capacity_nor_get_a_wrong_value():
    cache, wrong = LruCache(5), []

    def use(offset):
        for number in range(2000):
            key = (number * 7 + offset) % 11
            if cache.get_or_make(key, lambda key=key: key * 10) != key * 10 or len(cache) > 5:
                wrong.append(key)

    threads = [threading.Thread(target=use, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
