"""A server that ends for good before or after any write of a job: another finishes it, once."""

import asyncio
from contextlib import contextmanager, suppress
from functools import partial

import psycopg
import pytest
from psycopg.rows import dict_row

from cluster.test_two_services import run, service  # noqa: F401  # the fixture
from jobs.serving import until
from server.jobs.job import JobState, StoreFailed

WRITES = ("insert", "save", "save")  # of a v2 job: its row, its first step, its end

pytestmark = pytest.mark.release


def name_of(call):
    return name_of(call.func) if isinstance(call, partial) else call.__name__


@contextmanager
def dead_from(here, number, *, committed):
    """From its write of that number on it says nothing to the database, as if it were killed there."""
    storage, original = here.service._storage, here.service._storage._db
    seen, is_dead, closing = [], asyncio.Event(), asyncio.Event()

    async def die():
        is_dead.set()
        await closing.wait()
        raise StoreFailed

    async def db(call, *args):
        is_the_one = False
        if name_of(call) in WRITES:
            seen.append(name_of(call))
            is_the_one = len(seen) == number
        if is_dead.is_set() or (is_the_one and not committed):
            await die()
        result = await original(call, *args)
        if is_the_one:
            await die()
        return result

    storage._db = db
    try:
        yield is_dead
    finally:
        storage._db = original
        closing.set()
    assert tuple(seen[:number]) == WRITES[:number]


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_accepted_job_ends_once(service, database, number, committed):  # noqa: F811
    async def test():
        async with service("one") as one, service("two", ready=False) as two:
            with dead_from(one, number, committed=committed) as is_dead:
                submitting = asyncio.create_task(one.submit())
                await asyncio.wait_for(is_dead.wait(), 20)
                with psycopg.connect(database, row_factory=dict_row, autocommit=True) as connection:
                    rows = connection.execute("SELECT * FROM jobs").fetchall()
                    assert len(rows) == (number > 1 or committed)  # else nobody was told of a job
                    for row in rows:
                        assert (await two.ended(row["id"])).state is JobState.COMPLETED
                    media = connection.execute("SELECT * FROM media").fetchall()
                    assert len(media) == len(rows)
                    ends = connection.execute("SELECT * FROM jobs").fetchall()
            with suppress(StoreFailed):
                await submitting
            await until(lambda: not one.service._runner.live)
            with psycopg.connect(database, row_factory=dict_row, autocommit=True) as connection:
                assert connection.execute("SELECT * FROM jobs").fetchall() == ends  # also when it is back
                assert connection.execute("SELECT * FROM media").fetchall() == media

    run(test())
