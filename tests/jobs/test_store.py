"""The store: what a call that returned has put on the disk, through kills, full disks and upgrades."""

import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import fields, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulid.errors import SetupError
from server.errors import FieldProblem
from server.jobs.job import IdempotencyConflict, JobFile, JobRecord, JobState, StoreFailed, StoreFull
from server.jobs.postgres_store import PostgresJobStore
from server.jobs.store import MIGRATIONS, SqliteJobStore, StoreDamaged, configure

QUEUED, PROCESSING, COMPLETED, FAILED = JobState
PICTURE = JobFile(name="0.webp", content_type="image/webp", width=896, height=1152, size=123_456)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
def sqlite(path):
    with closing(SqliteJobStore.open(path)) as store:
        yield store


@pytest.fixture(params=["sqlite", "postgres"])
def store(request):
    """What holds for either."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    address = request.getfixturevalue("database")
    with closing(PostgresJobStore.open(address, name="a", places=2, lease_s=60)) as store:
        yield store


def job(number, **changes):
    job_id = f"{number:032x}"
    plain = {"id": job_id, "key": "anna", "api": "v2", "submitted_at": 100.0, "deadline_at": 700.0}
    return JobRecord(**(plain | {"media_id": f"{number + 2**100:032x}"} | changes))


def completed(store, record, *, finished_at=200.0, expires_at=1000.0):
    """Take a job through its states."""
    store.insert(record)
    store.save(replace(record, state=PROCESSING, started_at=150.0, tries=1))
    done = replace(
        record, state=COMPLETED, started_at=150.0, finished_at=finished_at, tries=1, files=(PICTURE,)
    )
    store.save(done, media_expires_at=expires_at)
    return done


def known_jobs(store):
    return {row["id"] for row in store._connection.execute("SELECT id FROM jobs")}


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


# records

FULL_RECORD = job(
    7,
    api="v1",
    state=FAILED,
    started_at=101.5,
    finished_at=102.25,
    width=1,
    height=2,
    max_sequence_length=3,
    num_steps=4,
    num_outputs=5,
    seed=2**63 - 1,
    tries=6,
    deaths=8,
    files=(PICTURE, replace(PICTURE, name="1.webp")),
    error="No face found \N{EM DASH} sorry.",
    error_code="no_face",
    error_fields=(FieldProblem("width", "width is too large."), FieldProblem("seed", "seed is no number.")),
    similarities=((0.71234567, None), ()),
)


def test_every_field_of_a_record_comes_back(store):
    plain = job(8)
    assert [f.name for f in fields(JobRecord) if getattr(FULL_RECORD, f.name) == getattr(plain, f.name)] == [
        "key",
        "submitted_at",
        "deadline_at",
    ]
    for record in (FULL_RECORD, plain):
        assert store.insert(record) == record
        assert store.get(record.id) == record
    assert type(store.get(plain.id).state) is JobState


times = st.floats(0, 1e11, allow_subnormal=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=25, deadline=None)  # each makes a database, and waits for the disk
@given(
    key=texts,
    error=st.none() | texts,
    seed=st.none() | st.integers(0, 2**63 - 1),
    times=st.tuples(times, times, st.none() | times, st.none() | times),
    files=st.lists(st.builds(replace, st.just(PICTURE), name=texts, size=st.integers(0, 2**40)), max_size=4),
    similarities=st.lists(st.lists(st.none() | st.floats(-1, 1), max_size=4).map(tuple), max_size=4).map(
        tuple
    ),
)
def test_any_record_comes_back_after_reopening(
    tmp_path_factory, key, error, seed, times, files, similarities
):
    path = tmp_path_factory.mktemp("store") / "jobs.sqlite3"
    names = ("submitted_at", "deadline_at", "started_at", "finished_at")
    told = {"key": key, "error": error, "seed": seed, "files": tuple(files), "similarities": similarities}
    record = job(1, **told, **dict(zip(names, times, strict=True)))
    with closing(SqliteJobStore.open(path)) as store:
        store.insert(record)
    with closing(SqliteJobStore.open(path)) as store:
        assert store.get(record.id) == record


def test_what_was_never_there_is_none(store):
    assert store.get("f" * 32) is None
    assert store.media_file("f" * 32, "0.webp") is None
    store.delete("f" * 32)
    with pytest.raises(KeyError):
        store.save(job(1))


@pytest.mark.parametrize(("start", "end"), list(product(JobState, JobState)))
def test_a_saved_state_follows_the_table_of_moves(store, start, end):
    store.insert(job(1, state=start))
    if start.may_become(end):
        store.save(job(1, state=end, tries=1), media_expires_at=1.0)
        assert store.get(job(1).id) == job(1, state=end, tries=1)
    else:
        with pytest.raises(ValueError, match=f"cannot go from {start} to {end}"):
            store.save(job(1, state=end, tries=1), media_expires_at=1.0)
        assert store.get(job(1).id) == job(1, state=start)


def test_unfinished_jobs_come_in_order_of_arrival_whatever_the_clock_said(store):
    for number, submitted_at in ((3, 300.0), (1, 100.0), (2, 200.0)):
        store.insert(job(number, submitted_at=submitted_at))
    store.insert(job(4, state=FAILED, finished_at=1.0))
    completed(store, job(5))
    store.save(job(3, submitted_at=300.0, state=PROCESSING))
    assert [record.id for record in store.unfinished()] == [job(number).id for number in (3, 1, 2)]


def test_a_job_that_waits_no_longer_may_be_deleted_with_everything(store):
    completed(store, job(1))
    store.insert(job(2), idempotency_key="k", body_digest=b"1")
    store.delete(job(1).id)
    store.delete(job(2).id)
    assert known_jobs(store) == store.known_media() == set()
    # The key is free again.
    assert store.insert(job(3), idempotency_key="k", body_digest=b"2") == job(3)


# pictures


def test_pictures_are_known_from_completed_on(store):
    store.insert(job(1))
    store.save(job(1, state=PROCESSING))
    assert store.media_file(job(1).media_id, "0.webp") is None
    store.save(job(1, state=COMPLETED, files=(PICTURE,)), media_expires_at=9.0)
    assert store.media_file(job(1).media_id, "0.webp") == PICTURE
    assert store.media_file(job(1).media_id, "1.webp") is None
    assert store.media_file(job(1).id, "0.webp") is None
    assert store.known_media() == {job(1).media_id}


def test_a_picture_without_an_expiry_is_refused_and_changes_nothing(store):
    store.insert(job(1, state=PROCESSING))
    with pytest.raises(ValueError, match="needs media_expires_at"):
        store.save(job(1, state=COMPLETED))
    assert store.get(job(1).id).state is PROCESSING


def test_a_job_that_is_saved_again_when_completed_keeps_its_pictures_as_they_are(store):
    done = completed(store, job(1), expires_at=1000.0)
    store.save(done)
    store.save(done, media_expires_at=5000.0)
    assert store.sweep(now=1000.0, result_ttl_s=1e9) == [done.media_id]


def test_a_failed_job_has_no_pictures(store):
    store.insert(job(1))
    store.save(job(1, state=FAILED, error="x"), media_expires_at=9.0)
    assert store.known_media() == set()


# idempotency


def test_the_same_key_and_body_give_the_earlier_job_as_it_stands_now(store):
    store.insert(job(1), idempotency_key="k", body_digest=b"same")
    store.save(job(1, state=PROCESSING))
    assert store.insert(job(2), idempotency_key="k", body_digest=b"same") == job(1, state=PROCESSING)
    assert known_jobs(store) == {job(1).id}


def test_the_same_key_with_another_body_is_a_conflict_and_adds_nothing(store):
    store.insert(job(1), idempotency_key="k", body_digest=b"one")
    with pytest.raises(IdempotencyConflict):
        store.insert(job(2), idempotency_key="k", body_digest=b"two")
    assert known_jobs(store) == {job(1).id}


def test_keys_of_different_callers_do_not_meet(store):
    store.insert(job(1), idempotency_key="k", body_digest=b"one")
    assert store.insert(job(2, key="berta"), idempotency_key="k", body_digest=b"two").id == job(2).id
    assert store.insert(job(3), body_digest=b"one").id == job(3).id


# sweeping


def test_ended_jobs_go_after_their_time_and_pictures_after_theirs(store):
    completed(store, job(1), finished_at=200.0, expires_at=1000.0)
    completed(store, job(2), finished_at=300.0, expires_at=250.0)
    store.insert(job(3))
    store.insert(job(4), idempotency_key="k", body_digest=b"1")
    store.save(job(4, state=FAILED, finished_at=200.0))
    assert store.sweep(now=249.9, result_ttl_s=50.0) == []
    assert known_jobs(store) == {job(number).id for number in (1, 2, 3, 4)}
    assert store.sweep(now=250.0, result_ttl_s=50.0) == [job(2).media_id]
    # The pictures outlive the record of their job; the record may outlive its pictures.
    assert store.media_file(job(1).media_id, "0.webp") == PICTURE
    assert known_jobs(store) == {job(2).id, job(3).id}
    # An Idempotency-Key expires with its job.
    assert store.insert(job(5), idempotency_key="k", body_digest=b"2") == job(5)
    assert store.sweep(now=1e9, result_ttl_s=50.0) == [job(1).media_id]
    assert {record.id for record in store.unfinished()} == {job(3).id, job(5).id}


# the file


def test_only_the_server_s_user_may_read_the_database(sqlite, path):
    sqlite.insert(job(1))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["jobs.sqlite3", "jobs.sqlite3-shm", "jobs.sqlite3-wal"]
    assert [mode_of(file) for file in files] == [0o600] * 3


def test_a_database_that_others_could_read_is_closed_to_them(path):
    SqliteJobStore.open(path).close()
    path.chmod(0o644)
    with closing(SqliteJobStore.open(path)) as store:
        store.insert(job(1))
        assert mode_of(path) == mode_of(path.with_name("jobs.sqlite3-wal")) == 0o600


def test_commits_are_synced_and_references_are_kept(path):
    with closing(sqlite3.connect(path)) as connection:
        configure(connection)
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_file_system_without_wal_is_refused():
    # A database in memory has no WAL, like one on some network file systems.
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(SetupError, match="local disk"),
    ):
        configure(connection)


def test_a_file_that_is_no_database_is_damaged_and_kept(path):
    path.write_bytes(b"certainly no database" * 1000)
    with pytest.raises(StoreDamaged, match=r"jobs\.sqlite3 is damaged .*not a database.* Move it away"):
        SqliteJobStore.open(path)
    assert path.read_bytes().startswith(b"certainly")


def test_a_database_with_a_broken_page_is_damaged(path):
    with closing(SqliteJobStore.open(path)) as store:
        for number in range(200):
            store.insert(job(number))
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="is damaged"):
        SqliteJobStore.open(path)


def test_a_path_that_is_no_file_is_explained(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "jobs.sqlite3"):
        with pytest.raises(SetupError, match="cannot be opened"):
            SqliteJobStore.open(path)


# upgrades


def version_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


@pytest.fixture
def later(tmp_path):
    """The migrations of a later version of the server: `later(sql)` adds one."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for migration in MIGRATIONS.glob("*.sql"):
        (folder / migration.name).write_text(migration.read_text())

    def add(sql):
        number = len(list(folder.iterdir())) + 1
        (folder / f"{number:04}_later.sql").write_text(sql)
        return folder

    return add


def test_migrations_are_numbered_from_one_without_gaps():
    numbers = [int(path.name[:4]) for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_new_database_has_the_newest_schema_and_needs_no_copy(sqlite, path):
    assert version_of(path) == len(list(MIGRATIONS.glob("*.sql")))
    assert not list(path.parent.glob("*.bak*"))


def test_an_older_database_is_copied_then_migrated_with_its_jobs(path, later):
    with closing(SqliteJobStore.open(path)) as store:
        store.insert(job(1))
    before = version_of(path)
    migrations = later("ALTER TABLE jobs ADD COLUMN colour TEXT; UPDATE jobs SET colour = 'a;b';")
    migrations = later("ALTER TABLE jobs DROP COLUMN colour; CREATE TABLE extra (a);")
    path.with_name(f"jobs.sqlite3.v{before}.bak.tmp").write_text("of a server that was killed in here")
    with closing(SqliteJobStore.open(path, migrations=migrations)) as store:
        assert store.get(job(1).id) == job(1)
    assert version_of(path) == before + 2
    copy = path.with_name(f"jobs.sqlite3.v{before}.bak")
    assert mode_of(copy) == 0o600
    assert version_of(copy) == before
    with closing(SqliteJobStore.open(copy)) as store:
        assert store.get(job(1).id) == job(1)


FIRST_SCHEMA_ROWS = """
INSERT INTO jobs VALUES (1, 'a1', 'anna', 'v2', 'COMPLETED', 100.0, 700.0, 150.0, 200.0,
    896, 1152, 128, 20, 1, 7, 1, 0, 'm1',
    '[{"name": "0.webp", "content_type": "image/webp", "width": 896, "height": 1152, "size": 123456}]',
    NULL, NULL);
INSERT INTO jobs VALUES (2, 'a2', '', 'v2', 'FAILED', 100.0, 700.0, NULL, 200.0,
    0, 0, 0, 0, 0, NULL, 0, 0, 'm2', '[]', 'width must be less.', 'invalid_parameters');
INSERT INTO jobs VALUES (3, 'a3', '', 'v2', 'QUEUED', 100.0, 700.0, NULL, NULL,
    256, 256, 128, 4, 1, 7, 0, 0, 'm3', '[]', NULL, NULL);
INSERT INTO idempotency VALUES ('anna', 'once', x'00', 'a1');
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_schema_keeps_its_jobs_and_takes_what_came_later(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript((MIGRATIONS / "0001_jobs.sql").read_text() + FIRST_SCHEMA_ROWS)
    with closing(SqliteJobStore.open(path)) as store:
        done = store.earlier("anna", "once").record
        assert (done.id, done.state, done.files, done.similarities) == ("a1", COMPLETED, (PICTURE,), ())
        failed = store.get("a2")
        assert (failed.error_code, failed.error_fields) == ("invalid_parameters", ())
        (waiting,) = store.unfinished()
        store.save(replace(waiting, state=PROCESSING))
        after = replace(waiting, state=COMPLETED, similarities=((0.5,),))
        store.save(after, media_expires_at=1000.0)
        assert store.get("a3") == after
    assert version_of(path.with_name("jobs.sqlite3.v1.bak")) == 1


def test_a_migrated_database_is_not_copied_again(path, later):
    SqliteJobStore.open(path).close()
    migrations = later("CREATE TABLE extra (a);")
    for _ in range(2):
        SqliteJobStore.open(path, migrations=migrations).close()
        (copy,) = path.parent.glob("*.bak*")
        copy.write_text("untouched")
    assert copy.read_text() == "untouched"


def test_a_migration_that_fails_changes_nothing(path, later):
    with closing(SqliteJobStore.open(path)) as store:
        store.insert(job(1))
    before = version_of(path)
    migrations = later("CREATE TABLE extra (a); DELETE FROM jobs;")
    migrations = later("INSERT INTO no_such_table VALUES (1);")
    with pytest.raises(SetupError, match="no_such_table"):
        SqliteJobStore.open(path, migrations=migrations)
    assert version_of(path) == before
    with closing(SqliteJobStore.open(path)) as store:
        assert known_jobs(store) == {job(1).id}
    with closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("SELECT * FROM sqlite_master WHERE name = 'extra'").fetchall()


def test_a_newer_schema_is_refused_and_left_alone(path, later):
    SqliteJobStore.open(path, migrations=later("CREATE TABLE extra (a);")).close()
    content = path.read_bytes()
    known = len(list(MIGRATIONS.glob("*.sql")))
    words = rf"written by a newer version .*schema {known + 1}; this one knows {known}\)"
    with pytest.raises(SetupError, match=words):
        SqliteJobStore.open(path)
    assert path.read_bytes() == content


# no room


def limited(path):
    """A store whose connection the test can limit."""
    SqliteJobStore.open(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    configure(connection)
    return connection, SqliteJobStore(connection)


def insert_until_full(store):
    for number in range(10_000):
        try:
            store.insert(job(number))
        except StoreFull:
            return number
    pytest.fail("never full")


def test_a_full_disk_refuses_what_is_new_keeps_the_old_and_passes(path):
    connection, store = limited(path)
    with closing(store):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 6}")
        accepted = insert_until_full(store)
        assert accepted > 3
        assert known_jobs(store) == {job(number).id for number in range(accepted)}
        assert store.get(job(0).id) == job(0)
        assert len(store.unfinished()) == accepted
        with pytest.raises(StoreFull):
            store.save(job(0, error="x" * 100_000))
        assert store.get(job(0).id) == job(0)
        connection.execute("PRAGMA max_page_count = 100000")
        store.insert(job(accepted))
    with closing(SqliteJobStore.open(path)) as store:
        assert len(known_jobs(store)) == accepted + 1


WRITES = {
    "insert": lambda store: store.insert(job(2)),
    "save": lambda store: store.save(job(1, state=PROCESSING)),
    "delete": lambda store: store.delete(job(1).id),
    "sweep": lambda store: store.sweep(now=1e9, result_ttl_s=1.0),
    "probe": lambda store: store.probe(),
}
READS = {
    "get": lambda store: store.get(job(1).id),
    "earlier": lambda store: store.earlier("anna", "k"),
    "unfinished": lambda store: store.unfinished(),
    "media_file": lambda store: store.media_file(job(1).media_id, "0.webp"),
    "known_media": lambda store: store.known_media(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_writing_call_says_so_when_the_disk_takes_no_more(path, write):
    connection, store = limited(path)
    with closing(store):
        store.insert(job(1))
        store.insert(job(9, state=FAILED, finished_at=1.0))
        # As after a kernel has made a failing disk read-only.
        connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreFull):
            write(store)
        assert known_jobs(store) == {job(1).id, job(9).id}
        connection.execute("PRAGMA query_only = OFF")
        write(store)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_writing_call_says_so_when_another_program_holds_the_database(path, write):
    connection, store = limited(path)
    with closing(store), closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.insert(job(1))
        connection.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed) as caught:
            write(store)
        assert not isinstance(caught.value, StoreFull)
        assert store.get(job(1).id) == job(1), "reading goes on"
        other.execute("ROLLBACK")
        write(store)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_reading_call_says_so_when_it_is_broken_off(path, read):
    connection, store = limited(path)
    with closing(store):
        store.insert(job(1))
        connection.set_progress_handler(lambda: 1, 1)  # what it returns means: no further
        with pytest.raises(StoreFailed):
            read(store)
        connection.set_progress_handler(None, 1)
        read(store)


WRITE_UNDER_LIMITS = """
import os, resource, signal, sys
from pathlib import Path
from server.jobs.job import JobRecord, StoreFull
from server.jobs.store import SqliteJobStore

def job(number):
    return JobRecord(id=f"{number:032x}", key="", api="v2", submitted_at=0.0, deadline_at=0.0,
                     media_id=f"{number + 2**99:032x}")

store = SqliteJobStore.open(Path(sys.argv[1]))
store.insert(job(0))

# No file handle left: the store has its own open already.
lowest_free = os.dup(0)
os.close(lowest_free)
most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, most[1]))
store.insert(job(1))
try:
    SqliteJobStore.open(Path(sys.argv[1]))
    sys.exit("opened without a handle")
except Exception as exc:
    print(type(exc).__name__)
resource.setrlimit(resource.RLIMIT_NOFILE, most)

# No file may grow: write() itself fails, as over a quota.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
number = 2
try:
    while number < 10_000:
        store.insert(job(number))
        number += 1
except StoreFull:
    print("full")
assert len(store.unfinished()) == number
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.insert(job(number))
print(number + 1)
"""


def test_limits_of_the_system_refuse_in_words_and_pass(path):
    command = [sys.executable, "-W", "error", "-c", WRITE_UNDER_LIMITS, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    failure, full, accepted = done.stdout.split()
    assert (failure, full) == ("StoreUnusable", "full")
    with closing(SqliteJobStore.open(path)) as store:
        assert len(known_jobs(store)) == int(accepted) > 10


# kill -9

INSERT_AND_SAVE_FOR_EVER = """
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from server.jobs.job import JobRecord, JobState
from server.jobs.store import SqliteJobStore

store = SqliteJobStore.open(Path(sys.argv[1]))
for number in count(int(sys.argv[2])):
    record = JobRecord(id=f"{number:032x}", key="", api="v2", submitted_at=0.0, deadline_at=0.0,
                       media_id=f"{number + 2**99:032x}")
    store.insert(record, idempotency_key=str(number))
    print("QUEUED", record.id, flush=True)
    for state in (JobState.PROCESSING, JobState.COMPLETED):
        store.save(replace(record, state=state), media_expires_at=1.0)
        print(state, record.id, flush=True)
"""
KILLS = 20


def test_what_was_acknowledged_before_a_kill_is_there_after_it(path, capsys):
    told = {}  # job → the last state that a call has returned for
    for attempt in range(KILLS):
        command = [sys.executable, "-c", INSERT_AND_SAVE_FOR_EVER, path, str(attempt * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            output = writer.stdout.readline()
            time.sleep(0.003 * attempt)
            writer.kill()
            output += writer.stdout.read()
        whole_lines = output[: output.rindex("\n")].split("\n")
        told.update({job_id: JobState(state) for state, job_id in map(str.split, whole_lines)})
        with closing(SqliteJobStore.open(path)) as store:  # checks the file
            stored = {job_id: store.get(job_id) for job_id in told}
            known = known_jobs(store)
        assert None not in stored.values()
        for job_id, state in told.items():
            # A state may be one ahead: saved, but killed before it was told.
            assert state.may_become(stored[job_id].state)
        assert len(known - told.keys()) <= attempt + 1
    with capsys.disabled():
        sys.stdout.write(f"\n{KILLS} kills of a writer, {len(told)} jobs acknowledged, 0 lost\n")
    assert len(told) >= KILLS
