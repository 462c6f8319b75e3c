"""Who has a job, and whose word on it counts: the races of docs/decisions/0015-shared-state.md."""

import asyncio
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace

import psycopg
import pytest

from pulid.errors import SetupError
from server.jobs.job import JobFile, JobRecord, JobState, KeyHasEnough, LeaseLost, StoreFailed
from server.jobs.postgres_notices import Notices
from server.jobs.postgres_schema import MIGRATIONS, SESSION
from server.jobs.postgres_store import PostgresJobStore
from server.jobs.store import DatabaseUnusable, NameTaken

QUEUED, PROCESSING, COMPLETED, FAILED = JobState
PICTURE = JobFile(name="0.webp", content_type="image/webp", width=896, height=1152, size=123_456)
LEASE_S = 0.1


def job(number, **changes):
    plain = {"id": f"{number:032x}", "key": "anna", "api": "v2", "submitted_at": 100.0, "deadline_at": 700.0}
    return JobRecord(**(plain | {"media_id": f"{number + 2**100:032x}"} | changes))


def numbers(records):
    return [int(record.id, 16) for record in records]


@pytest.fixture
def servers(database):
    """Of any name; `servers("a")` again is a later life of it."""
    opened = []

    def server(name, *, places=2, lease_s=60.0, unfinished_per_key=0):
        store = PostgresJobStore.open(
            database, name=name, places=places, lease_s=lease_s, unfinished_per_key=unfinished_per_key
        )
        opened.append(store)
        return store

    yield server
    for store in opened:
        store.close()


def short(servers):
    """A server that is soon taken for dead."""
    return servers("a", lease_s=LEASE_S)


def wait_for_the_end_of_its_lease():
    time.sleep(LEASE_S + 0.1)


# taking up


def test_jobs_of_a_living_server_stay_its_own_as_long_as_its_devices_hold_them(servers):
    a, b = servers("a", places=2), servers("b")
    for number in (1, 2):
        a.insert(job(number))
    b.take_from_the_dead()
    assert b.claim(9) == []
    assert numbers(a.unfinished()) == [1, 2]


def test_what_waits_behind_that_is_claimed_in_order_of_arrival(servers):
    a, b = servers("a", places=2), servers("b")
    for number in (5, 4, 3, 2, 1):
        a.insert(job(number))
    assert numbers(b.claim(2)) == [3, 2]
    assert numbers(b.claim(9)) == [1]
    assert numbers(a.unfinished()) == [5, 4]
    assert numbers(b.unfinished()) == [3, 2, 1]


def test_calls_of_v1_are_never_claimed(servers):
    a, b = servers("a", places=0), servers("b")
    a.insert(job(1, api="v1"))
    assert b.claim(9) == []


def test_the_queued_and_the_running_jobs_of_a_dead_server_are_taken_up(servers):
    a, b = short(servers), servers("b")
    for number in (1, 2):
        a.insert(job(number))
    a.save(job(2, state=PROCESSING, started_at=5.0, tries=1))
    wait_for_the_end_of_its_lease()
    b.take_from_the_dead()
    first, second = b.claim(9)
    assert (first.state, second.state, second.started_at, second.tries) == (QUEUED, QUEUED, None, 1)
    assert {first.media_id, second.media_id}.isdisjoint({job(1).media_id, job(2).media_id})
    assert second.deadline_at > time.time()  # it does not pay for the dead time


def test_a_call_of_a_dead_server_is_failed_for_nobody_waits(servers):
    a, b = short(servers), servers("b")
    a.insert(job(1, api="v1", state=PROCESSING))
    wait_for_the_end_of_its_lease()
    b.take_from_the_dead()
    record = b.get(job(1).id)
    assert (record.state, record.error_code) == (FAILED, "interrupted")


def test_a_server_that_beats_is_not_dead(servers):
    a, b = servers("a", lease_s=0.6), servers("b")
    a.insert(job(1))
    for _ in range(3):
        time.sleep(0.3)
        assert a.beat() == {job(1).id: job(1).media_id}
        b.take_from_the_dead()
    assert b.claim(9) == []


def test_a_job_that_came_in_while_its_server_was_given_up_is_found(servers):
    a, b = short(servers), servers("b")
    wait_for_the_end_of_its_lease()
    b.take_from_the_dead()
    a.insert(job(1))  # and dies, before it beats again
    b.take_from_the_dead()
    assert numbers(b.claim(9)) == [1]


def test_two_that_claim_at_once_get_different_jobs(servers):
    a = servers("a", places=0)
    for number in range(40):
        a.insert(job(number))
    claimed = {"b": [], "c": []}
    start = threading.Barrier(2)

    def claim(name):
        store = servers(name, places=100)
        start.wait()
        while records := store.claim(3):
            claimed[name] += numbers(records)

    threads = [threading.Thread(target=claim, args=(name,)) for name in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed["b"] + claimed["c"]) == list(range(40))


# whose word counts


def taken_over(servers, **state):
    """A job of a server that was frozen, and has been taken up by another."""
    a, b = short(servers), servers("b")
    a.insert(job(1))
    if state:
        a.save(job(1, **state))
    wait_for_the_end_of_its_lease()
    b.take_from_the_dead()
    [record] = b.claim(9)
    return a, b, record


@pytest.mark.parametrize("state", [QUEUED, PROCESSING, COMPLETED, FAILED])
def test_a_former_owner_writes_nothing_any_more(servers, state):
    a, b, record = taken_over(servers, state=PROCESSING)
    with pytest.raises(LeaseLost):
        a.save(job(1, state=state, files=(PICTURE,)), media_expires_at=9e9)
    assert b.get(record.id) == record
    assert a.beat() == {}
    assert b.known_media() == set()


def test_the_end_is_written_once_by_whoever_has_the_lease(servers):
    a, b, record = taken_over(servers, state=PROCESSING)
    done = replace(record, state=COMPLETED, files=(PICTURE,), finished_at=1.0)
    b.save(done, media_expires_at=9e9)
    with pytest.raises(LeaseLost):
        a.save(job(1, state=COMPLETED, files=(PICTURE,)), media_expires_at=9e9)
    assert a.get(record.id) == done
    assert a.known_media() == {record.media_id}


def test_a_lease_that_ran_out_unnoticed_still_counts(servers):
    """Nobody has taken the job up: what its owner made of it is as good as any."""
    a, b = short(servers), servers("b")
    a.insert(job(1))
    wait_for_the_end_of_its_lease()
    a.save(job(1, state=FAILED, error="x"))
    b.take_from_the_dead()
    assert b.claim(9) == []
    assert b.get(job(1).id).state is FAILED


def test_the_same_server_cannot_use_an_earlier_lease_of_its_own(servers):
    a, b, record = taken_over(servers)
    b.give_back([record.id])
    [again] = a.claim(9)
    assert a.beat() == {job(1).id: again.media_id}
    with pytest.raises(LeaseLost):
        a.save(job(1, state=FAILED))
    a.save(replace(again, state=FAILED))


def test_a_claimed_job_cannot_be_begun_by_the_busy_server(servers):
    a, b = servers("a", places=0), servers("b")
    a.insert(job(1))
    assert numbers(b.claim(1)) == [1]
    with pytest.raises(LeaseLost):
        a.save(job(1, state=PROCESSING, tries=1))


def test_a_cancel_elsewhere_ends_the_job_and_its_owner_hears_it(servers):
    a, b = servers("a"), servers("b")
    a.insert(job(1, state=PROCESSING))
    ended = job(1, state=FAILED, error="The job was cancelled.", error_code="cancelled", finished_at=1.0)
    stored = b.seize(ended)
    assert (stored.state, stored.error_code) == (FAILED, "cancelled")
    with pytest.raises(LeaseLost):
        a.save(job(1, state=COMPLETED, files=(PICTURE,)), media_expires_at=9e9)
    assert b.known_media() == set()


def test_a_cancel_that_comes_after_the_end_changes_nothing(servers):
    a, b = servers("a"), servers("b")
    a.insert(job(1, state=PROCESSING))
    done = job(1, state=COMPLETED, files=(PICTURE,))
    a.save(done, media_expires_at=9e9)
    assert b.seize(job(1, state=FAILED)) == done
    a.delete(job(1).id)
    assert b.seize(job(1, state=FAILED)) is None


# coming and going


def test_a_server_that_goes_in_order_leaves_its_jobs_to_the_others_at_once(servers):
    a, b = servers("a"), servers("b")
    a.insert(job(1))
    a.insert(job(2, state=PROCESSING, started_at=5.0, tries=1))
    a.leave()
    first, second = b.claim(9)
    assert (numbers([first, second]), second.tries, second.started_at) == ([1, 2], 1, None)


def test_a_server_that_starts_again_need_not_wait_for_its_own_lease(servers):
    a = servers("a")
    a.insert(job(1, state=PROCESSING, tries=1))
    a.insert(job(2, api="v1"))
    again = servers("a")
    assert again.unfinished() == []
    [record] = again.claim(9)
    assert (record.id, record.state, record.tries) == (job(1).id, QUEUED, 1)
    assert record.media_id != job(1).media_id
    assert again.get(job(2).id).error_code == "interrupted"
    with pytest.raises(LeaseLost):
        a.save(job(1, state=PROCESSING))


def test_the_earlier_of_two_servers_of_one_name_ends_and_takes_nothing_with_it(servers):
    a, copy = servers("a"), servers("a")
    copy.insert(job(1))
    with pytest.raises(NameTaken, match="data folder is a copy"):
        a.beat()
    a.leave()
    assert list(copy.beat()) == [job(1).id]


def test_two_servers_give_one_idempotency_key_to_one_job(servers):
    a, b = servers("a"), servers("b")
    results = {}
    start = threading.Barrier(2)

    def submit(store, number):
        start.wait()
        results[number] = store.insert(job(number), idempotency_key="k", body_digest=b"1").id

    threads = [threading.Thread(target=submit, args=pair) for pair in ((a, 1), (b, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] == results[2]
    assert len(a.unfinished()) + len(b.unfinished()) == 1


def test_a_key_has_its_unfinished_jobs_at_all_servers_together(servers):
    a, b = servers("a", unfinished_per_key=2), servers("b", unfinished_per_key=2)
    start = threading.Barrier(2)
    refused = []

    def submit(store, numbers):
        start.wait()
        for number in numbers:
            try:
                store.insert(job(number))
            except KeyHasEnough:
                refused.append(number)

    threads = [threading.Thread(target=submit, args=pair) for pair in ((a, range(10)), (b, range(10, 20)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unfinished = a.unfinished() + b.unfinished()
    assert (len(refused), len(unfinished)) == (18, 2)
    b.insert(job(30, key="bertha"))
    b.insert(job(31, state=FAILED, error="x"))  # it waits for nothing
    a.seize(replace(unfinished[0], state=FAILED, error="x"))
    b.insert(job(32))


# clocks


def test_a_server_whose_clock_is_wrong_deletes_nothing_before_its_time(servers, monkeypatch):
    a, b = servers("a"), servers("b")
    now, clock = time.time(), time.time
    a.insert(job(1, submitted_at=now, deadline_at=now + 600, state=PROCESSING))
    done = job(1, submitted_at=now, deadline_at=now + 600, state=COMPLETED, finished_at=now, files=(PICTURE,))
    a.save(done, media_expires_at=now + 3600)
    monkeypatch.setattr(time, "time", lambda: clock() + 86_400)
    b.beat()
    assert b.sweep(now=time.time(), result_ttl_s=60.0) == []
    seen = b.get(done.id)
    assert seen.deadline_at - time.time() == pytest.approx(600, abs=5)  # as b has it
    assert b.sweep(now=time.time() + 3700, result_ttl_s=60.0) == [done.media_id]
    assert b.get(done.id) is None


def test_times_of_a_server_whose_clock_is_wrong_are_right_for_the_others(servers, monkeypatch):
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 86_400)
    a, b = servers("a"), servers("b")
    now = time.time()
    a.insert(job(1, submitted_at=now, deadline_at=now + 600))
    monkeypatch.undo()
    b.beat()
    assert b.get(job(1).id).deadline_at - time.time() == pytest.approx(600, abs=5)


# the database


def test_a_server_that_freezes_within_a_transaction_keeps_no_job_from_the_others(servers, monkeypatch):
    monkeypatch.setitem(SESSION, "idle_in_transaction_session_timeout", "500ms")
    a, b = short(servers), servers("b")
    a.insert(job(1, state=PROCESSING))
    with pytest.raises(StoreFailed), a._transaction() as db:  # noqa: PT012 - what the database ends
        db.execute("SELECT * FROM jobs FOR UPDATE")
        wait_for_the_end_of_its_lease()
        b.take_from_the_dead()
        assert b.claim(9) == []
        time.sleep(0.5)
        b.take_from_the_dead()
        assert numbers(b.claim(9)) == [1]
        db.execute("SELECT 1")


def test_what_another_server_deletes_in_this_moment_is_left_to_it(servers, database, monkeypatch):
    monkeypatch.setitem(SESSION, "statement_timeout", "500ms")
    a = servers("a")
    for number in (1, 2):
        a.insert(job(number, state=PROCESSING))
        a.save(job(number, state=COMPLETED, finished_at=1.0, files=(PICTURE,)), media_expires_at=2.0)
    with psycopg.connect(database) as other:
        other.execute("SELECT * FROM jobs WHERE id = %s FOR UPDATE", (job(1).id,))
        other.execute("SELECT * FROM media WHERE media_id = %s FOR UPDATE", (job(1).media_id,))
        assert a.sweep(now=3.0, result_ttl_s=0.0) == [job(2).media_id]
    assert a.sweep(now=3.0, result_ttl_s=0.0) == [job(1).media_id]


def test_a_busy_server_takes_what_is_nobodys_and_leaves_the_others_theirs(servers):
    a, b, c = servers("a", places=0), servers("b"), servers("c")
    a.insert(job(1))
    b.insert(job(2))
    b.leave()
    assert numbers(c.claim(9, of_the_busy=False)) == [2]
    assert c.claim(9, of_the_busy=False) == []


def test_what_is_too_much_for_one_sweep_is_left_to_the_next(servers, monkeypatch):
    monkeypatch.setattr("server.jobs.postgres_store.SWEPT_AT_ONCE", 1)
    a = servers("a")
    for number in (1, 2):
        a.insert(job(number, state=PROCESSING))
        a.save(job(number, state=COMPLETED, finished_at=1.0, files=(PICTURE,)), media_expires_at=2.0)
    swept = [a.sweep(now=3.0, result_ttl_s=0.0) for _ in range(3)]
    assert sorted(map(len, swept)) == [0, 1, 1]
    assert [a.get(job(number).id) for number in (1, 2)] == [None, None]


def test_one_of_the_living_keeps_house(servers):
    a, b = short(servers), servers("b")
    assert (a.keeps_house(), b.keeps_house()) == (True, False)
    wait_for_the_end_of_its_lease()
    assert b.keeps_house()


def test_a_database_without_an_encoding_keeps_texts_as_they_are(postgres):
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS plain")
        connection.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    address = postgres.url().replace("/postgres?", "/plain?")
    with closing(PostgresJobStore.open(address, name="a", places=2, lease_s=60)) as store:
        failed = job(1, state=FAILED, error="Zu groß: 5 × 5")
        store.insert(failed)
        assert store.get(failed.id) == failed


def test_a_database_that_takes_no_writes_is_refused(database):
    with pytest.raises(DatabaseUnusable, match="read-only"):
        PostgresJobStore.open(
            database.replace("options=", "options=-cdefault_transaction_read_only%3Don%20"),
            name="a",
            places=1,
            lease_s=1,
        )


def test_who_waits_behind_a_connection_that_timed_out_is_answered_at_once(servers, monkeypatch):
    a = servers("a")
    a._connection.close()
    tried = []

    def no_answer(address):
        tried.append(address)
        time.sleep(0.25)
        raise psycopg.OperationalError("timeout expired")

    monkeypatch.setattr("server.jobs.postgres_store._PATIENT_S", 0.2)
    monkeypatch.setattr("server.jobs.postgres_store.connect", no_answer)
    for _ in range(5):
        with pytest.raises(StoreFailed, match="does not answer"):
            a.get(job(1).id)
    assert len(tried) == 1
    monkeypatch.undo()
    time.sleep(0.2)
    assert a.get(job(1).id) is None


def test_a_database_that_went_away_is_said_so_and_used_again_when_it_is_back(postgres):
    with closing(PostgresJobStore.open(postgres.new_database(), name="a", places=2, lease_s=60)) as store:
        store.insert(job(1))
        postgres.kill()
        for call in (lambda: store.insert(job(2)), lambda: store.get(job(1).id), store.beat):
            with pytest.raises(StoreFailed, match="database does not answer"):
                call()
        postgres.start()
        store.insert(job(3))
        assert numbers(store.unfinished()) == [1, 3]


def test_a_listener_hears_again_after_the_database_was_away(postgres, monkeypatch):
    monkeypatch.setattr("server.jobs.postgres_notices.AGAIN_S", 0.1)
    database = postgres.new_database()
    heard, steps = [], []

    async def hear_from(store, number):
        async with asyncio.timeout(20):
            while len(heard) < number or len(steps) < number:
                with suppress(StoreFailed):
                    store.insert(job(time.monotonic_ns()))
                    store.tell_steps("x")
                await asyncio.sleep(0.1)

    async def test():
        listening = asyncio.create_task(
            Notices(database, name="b").listen_for_ever(heard.append, steps.append)
        )
        with closing(PostgresJobStore.open(database, name="a", places=2, lease_s=60)) as store:
            await hear_from(store, 1)
            postgres.kill()
            postgres.start()
            heard.clear()
            steps.clear()
            await hear_from(store, 1)
        assert (set(heard), set(steps)) == ({""}, {"x"})
        listening.cancel()

    asyncio.run(test())


def test_several_servers_may_make_the_tables_at_once(database):
    start = threading.Barrier(4)
    stores = []

    def open_one(name):
        start.wait()
        stores.append(PostgresJobStore.open(database, name=name, places=1, lease_s=60))

    threads = [threading.Thread(target=open_one, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert len(stores) == 4


def test_a_newer_schema_is_refused_and_left_alone(servers, database):
    servers("a").insert(job(1))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE flux_pulid_schema SET version = 99")
    with pytest.raises(SetupError, match="newer version of this server \\(schema 99"):
        servers("b")


def test_migrations_are_numbered_from_one_without_gaps():
    found = [int(path.name[:4]) for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert found == list(range(1, len(found) + 1))


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://flux:pass@word@127.0.0.1:1/flux",
        "postgresql://flux:pass/word@127.0.0.1:1/flux",
        "postgresql://flux:1/word@127.0.0.1:1/flux",
        "postgresql://flux:pass?word@127.0.0.1:1/flux",
        "postgresql://flux:pass#word@127.0.0.1:1/flux",
        "postgresql://flux:pass:word@127.0.0.1:1/flux",
        "postgresql://flux:pass%40word@127.0.0.1:1/flux",
        "postgresql://flux:pass%word@127.0.0.1:1/flux",
    ],
)
def test_no_part_of_a_password_is_told_however_it_is_written(address):
    with pytest.raises(DatabaseUnusable) as refused:
        PostgresJobStore.open(address, name="a", places=1, lease_s=1)
    assert "word" not in str(refused.value).replace("a password, write", "")


@pytest.mark.parametrize("address", ["postgresql://nobody@127.0.0.1:1/none", "postgresql://x?nonsense=1"])
def test_a_database_that_cannot_be_used_is_explained(address):
    with pytest.raises(DatabaseUnusable, match="DATABASE_URL"):
        PostgresJobStore.open(address, name="a", places=1, lease_s=1)
