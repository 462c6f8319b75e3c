"""Bodies and pictures as objects: in memory always, and before a release on an S3 server of its own.

The S3 server is moto's, in an environment of its own, which is made on the way. MOTO_SERVER may name
the program where it is installed already.
"""

import os
import pickle
import socket
import subprocess
import sys
import time
from contextlib import closing

import httpx
import pytest
from PIL import Image

import jobs.serving
from jobs.serving import png
from server.jobs.files import ImageFile
from server.jobs.job import JobState, StoreFailed
from server.jobs.object_files import ObjectBodies, ObjectFolder, ObjectMedia
from server.jobs.places import MediaPlaceUnusable, SharedPlaces

JOB, MEDIA, OTHER = "a" * 32, "b" * 32, "c" * 32
PICTURES = [
    ImageFile(data=png(Image.new("RGB", (64, 48), colour)), format="png", width=64, height=48)
    for colour in ("red", "blue")
]
KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """The address of an S3 server."""
    program = os.environ.get("MOTO_SERVER")
    if program is None:
        venv = tmp_path_factory.mktemp("moto") / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", "moto[server]"], check=True)
        program = str(venv / "bin/moto_server")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(trust_env=False) as client:
            for _ in range(600):
                try:
                    client.put(f"{address}/pictures").raise_for_status()
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(request, monkeypatch, tmp_path):
    """The address of a place in it that is this test's alone."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("moto"))
    return f"s3://pictures/{tmp_path.name}"


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.release)])
def folder(request):
    return ObjectFolder("memory:///" if request.param == "memory" else request.getfixturevalue("bucket"))


def test_a_body_comes_back_until_it_is_deleted(folder):
    bodies = ObjectBodies(folder)
    bodies.write(JOB, b"body")
    assert bodies.read(JOB) == b"body"
    bodies.delete(JOB)
    bodies.delete(JOB)
    with pytest.raises(FileNotFoundError):
        bodies.read(JOB)


def test_bodies_of_other_jobs_go_once_they_are_old_enough(folder):
    bodies = ObjectBodies(folder)
    for job_id in (JOB, OTHER):
        bodies.write(job_id, b"body")
    bodies.delete_others({JOB}, older_than_s=60)
    assert bodies.read(OTHER) == b"body"
    bodies.delete_others({JOB})
    assert bodies.read(JOB) == b"body"
    with pytest.raises(FileNotFoundError):
        bodies.read(OTHER)


def test_pictures_come_back_and_go_together(folder):
    media = ObjectMedia(folder)
    saved = media.save(MEDIA, PICTURES)
    assert [(file.name, file.size) for file in saved] == [
        ("0.png", len(PICTURES[0].data)),
        ("1.png", len(PICTURES[1].data)),
    ]
    assert media.read(MEDIA, "1.png") == PICTURES[1].data
    assert media.media_ids() == {MEDIA}
    assert media.media_ids(older_than_s=60) == set()
    media.delete(MEDIA)
    media.delete(MEDIA)
    assert media.media_ids() == set()


def test_names_are_checked_before_they_become_paths(folder):
    for read in (
        lambda: ObjectBodies(folder).read("../x"),
        lambda: ObjectMedia(folder).read(MEDIA, "../0.png"),
        lambda: ObjectMedia(folder).delete(""),
    ):
        with pytest.raises(ValueError, match="not an id or name"):
            read()


@pytest.fixture
def nobody(monkeypatch):
    """A store that does not answer."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("server.jobs.object_files.PATIENCE_S", 2)
    return "s3://pictures/x"


@pytest.mark.release
def test_a_store_that_does_not_answer_is_a_store_that_failed(nobody):
    folder = ObjectFolder(nobody)
    with pytest.raises(StoreFailed):
        ObjectBodies(folder).write(JOB, b"body")
    with pytest.raises(OSError, match="does not answer"):
        ObjectMedia(folder).read(MEDIA, "0.png")


def test_a_store_that_does_not_answer_at_start_is_explained(nobody):
    with pytest.raises(MediaPlaceUnusable, match="AWS_ENDPOINT_URL"):
        SharedPlaces(database_url="", media_url=nobody, devices=1).open_bodies()


@pytest.mark.release
def test_what_travels_to_a_worker_opens_the_same_place_there(bucket):
    media = ObjectMedia(ObjectFolder(bucket))
    media.save(MEDIA, PICTURES)
    there = pickle.loads(pickle.dumps(media))  # noqa: S301 - our own
    assert there.read(MEDIA, "0.png") == PICTURES[0].data


@pytest.mark.release
def test_a_job_is_done_with_its_body_and_pictures_in_a_bucket(bucket, database, monkeypatch, tmp_path):
    monkeypatch.setattr(
        jobs.serving,
        "shared_places",
        lambda folder, devices: SharedPlaces(
            database_url=database, media_url=bucket, devices=len(devices), lease_s=10
        ),
    )

    @jobs.serving.scenario
    async def test(start):
        async with start(gated=True) as here:
            job_id = await here.submit()
            await here.processing(job_id)
            folder = ObjectFolder(bucket)
            assert list(folder.older("bodies", 0)) == [f"bodies/{job_id}"]
            here.script.open_gate()
            record = await here.ended(job_id)
            assert record.state is JobState.COMPLETED
            data, file = await here.service.media(record.media_id, "0.png")
            assert len(data) == file.size
            assert (await here.service.read_outputs(record)) == [data]
            await here.service.remove(job_id, key="")
            assert list(folder.older("bodies", 0)) == list(folder.older("media", 0)) == []

    test(tmp_path)
