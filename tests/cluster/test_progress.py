"""Steps as servers tell them to each other."""

import pytest

from server.jobs.progress import REMEMBERED, TOLD_AT_ONCE, OwnProgress, Progress, ProgressElsewhere

A, B = "a" * 32, "b" * 32


def test_what_is_told_is_heard():
    elsewhere = ProgressElsewhere()
    told = OwnProgress().news({A: Progress(3, 4.56), B: Progress(1)})
    assert elsewhere.hear(told) == [A, B]
    assert (elsewhere.of(A), elsewhere.of(B)) == (Progress(3, 4.6), Progress(1))
    elsewhere.forget(A)
    assert (elsewhere.of(A), elsewhere.of("c" * 32)) == (None, None)


def test_only_news_are_told():
    own = OwnProgress()
    assert own.news({A: Progress(1)})
    assert own.news({A: Progress(1)}) == ""
    assert own.news({A: Progress(1), B: Progress(1)}).startswith(B)
    assert own.news({}) == ""
    assert own.news({A: Progress(1)}) != ""  # another attempt


def test_a_notice_has_room_for_what_is_told_and_the_rest_follows():
    own = OwnProgress()
    jobs = {f"{number:032x}": Progress(100, 86_400.0) for number in range(TOLD_AT_ONCE + 1)}
    first = own.news(jobs)
    assert len(first) < 7900
    assert len(own.news(jobs).split()) == 1


def test_what_was_not_heard_of_for_long_is_forgotten():
    elsewhere = ProgressElsewhere()
    elsewhere.hear(f"{A}:1:")
    for number in range(REMEMBERED):
        elsewhere.hear(f"{number:032x}:1:")
    assert elsewhere.of(A) is None
    assert elsewhere.of(f"{0:032x}") == Progress(1)


@pytest.mark.parametrize("told", ["x", f"{A}:1", f"{A}:one:", f"{A}:1:soon", f"{A}:1:2:3"])
def test_what_another_version_tells_is_passed_over(told):
    elsewhere = ProgressElsewhere()
    assert elsewhere.hear(told) == []
    assert elsewhere.of(A) is None
