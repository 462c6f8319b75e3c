"""Bodies, photos and pictures on the disk: whole or absent, private, and what happens without room."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fakes import flat_picture
from server.jobs.files import (
    MAX_PHOTOS,
    ImageFile,
    JobBodies,
    MediaFiles,
    OutputOptions,
    encode_image,
    encode_images,
    free_bytes,
)
from server.jobs.job import JobFile, StoreFull

JOB = "0123456789abcdef" * 2
OTHER = "f" * 32
BAD_IDS = [
    "",
    "..",
    "a" * 31,
    "a" * 33,
    "A" * 32,
    "g" * 32,
    f"../{JOB}",
    f"{JOB}\n",
    "\u0661" * 32,
    "a/" * 16,
]
BAD_NAMES = ["", "..", "0", "0.svg", "0.webp.tmp", "../0.webp", "123.png", "0.webp\n", "\u0661.png", "00.PNG"]


@pytest.fixture
def bodies(tmp_path):
    return JobBodies.open(tmp_path)


@pytest.fixture
def media(tmp_path):
    return MediaFiles.open(tmp_path)


def pictures(*sizes):
    return [
        ImageFile(data=bytes([index]) * size, format="png", width=8 + index, height=16)
        for index, size in enumerate(sizes)
    ]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


# pictures as bytes


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_becomes_a_file_of_its_format(name, kind):
    file = encode_image(flat_picture(32, 48, (10, 200, 30)), OutputOptions(format=name, quality=90))
    image = Image.open(BytesIO(file.data))
    assert (image.format, image.size, image.mode) == (kind, (48, 32), "RGB")
    assert (file.width, file.height) == (48, 32)
    assert np.allclose(np.asarray(image), (10, 200, 30), atol=6)


def test_png_keeps_every_pixel_and_the_order_of_pictures():
    pictures = [np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8) for seed in range(3)]
    files = encode_images(pictures, OutputOptions(format="png"))
    for picture, file in zip(pictures, files, strict=True):
        assert np.array_equal(np.asarray(Image.open(BytesIO(file.data))), picture)


# bodies and photos


@pytest.mark.parametrize("name", ["webp", "png"])
def test_other_threads_work_on_while_a_picture_is_encoded(name):
    """As the steps of the next job do. An encoder that kept the interpreter would let through none or one."""
    picture = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)
    begun, done = threading.Event(), threading.Event()

    def encode():
        begun.set()
        encode_image(picture, OutputOptions(format=name))
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    begun.wait()
    rounds = 0
    while not done.is_set():
        rounds += 1
        time.sleep(0.001)
    thread.join()
    assert rounds > 10


def test_a_body_is_read_as_it_was_written(bodies, tmp_path):
    for body in (b"", b'{"prompt": "a"}', bytes(range(256)) * 5000):
        bodies.write(JOB, body)
        assert bodies.read(JOB) == body
    assert mode_of(tmp_path / f"{JOB}.json") == 0o600


def test_photos_lie_beside_their_body_and_all_go_together(bodies, tmp_path):
    bodies.write(JOB, b"body")
    for number in range(MAX_PHOTOS):
        path = bodies.write_photo(JOB, number, b"photo %d" % number)
        assert path == bodies.photo_path(JOB, number)
        assert path.read_bytes() == b"photo %d" % number
        assert mode_of(path) == 0o600
    other = bodies.write_photo(OTHER, 1, b"another")
    assert len(names_in(tmp_path)) == MAX_PHOTOS + 2
    bodies.delete(JOB)
    bodies.delete(JOB)
    assert names_in(tmp_path) == [other.name]
    with pytest.raises(FileNotFoundError):
        bodies.read(JOB)


def test_what_a_killed_server_left_half_written_is_removed_and_the_rest_kept(tmp_path):
    JobBodies(tmp_path).write(JOB, b"body")
    (tmp_path / f"{OTHER}.json.tmp").write_bytes(b"half")
    assert JobBodies.open(tmp_path).read(JOB) == b"body"
    assert names_in(tmp_path) == [f"{JOB}.json"]


def test_files_of_jobs_that_nobody_knows_are_removed_whatever_their_number(bodies, tmp_path):
    for job in (JOB, OTHER):
        bodies.write(job, b"body")
        bodies.write_photo(job, 0, b"photo")
        bodies.write_photo(job, 5, b"photo")
    (tmp_path / f"{OTHER}.photo").write_bytes(b"of an earlier version")
    (tmp_path / "lost+found").touch()
    bodies.delete_others({JOB})
    assert names_in(tmp_path) == [f"{JOB}.json", f"{JOB}.photo.0", f"{JOB}.photo.5", "lost+found"]


# media


def test_pictures_are_saved_in_order_and_described(media, tmp_path):
    saved = media.save(JOB, pictures(100, 200))
    assert saved == (
        JobFile(name="0.png", content_type="image/png", width=8, height=16, size=100),
        JobFile(name="1.png", content_type="image/png", width=9, height=16, size=200),
    )
    assert [media.path(JOB, file.name).read_bytes() for file in saved] == [b"\0" * 100, b"\1" * 200]
    assert mode_of(tmp_path / JOB) == 0o700
    assert mode_of(media.path(JOB, "1.png")) == 0o600
    assert names_in(tmp_path) == [JOB]


def test_every_output_format_has_a_name_that_may_be_asked_for(media):
    picture = flat_picture(16, 16, (1, 2, 3))
    for name in ("png", "jpg", "webp"):
        (file,) = media.save(JOB, [encode_image(picture, OutputOptions(format=name))])
        assert file.name == f"0.{name}"
        assert media.path(JOB, file.name).stat().st_size == file.size


def test_a_second_try_replaces_the_pictures_of_the_first(media, tmp_path):
    media.save(JOB, pictures(10, 20))
    (tmp_path / f"{JOB}.tmp").mkdir()
    (tmp_path / f"{JOB}.tmp" / "7.png").write_bytes(b"of a worker that was killed")
    media.save(JOB, pictures(30))
    assert names_in(tmp_path) == [JOB]
    assert names_in(tmp_path / JOB) == ["0.png"]
    assert media.path(JOB, "0.png").stat().st_size == 30


def test_deleting_removes_one_job_s_pictures_and_may_be_repeated(media):
    media.save(JOB, pictures(10))
    media.save(OTHER, pictures(10))
    media.delete(JOB)
    media.delete(JOB)
    assert media.media_ids() == {OTHER}


def test_half_saved_sets_are_removed_at_the_server_s_start_alone(tmp_path):
    MediaFiles(tmp_path).save(JOB, pictures(10))
    (tmp_path / f"{OTHER}.tmp").mkdir()
    (tmp_path / f"{OTHER}.tmp" / "0.png").write_bytes(b"half")
    # Another worker may be writing it: a worker that starts must not touch it.
    assert MediaFiles(tmp_path).media_ids() == {JOB}
    assert names_in(tmp_path) == [JOB, f"{OTHER}.tmp"]
    MediaFiles.open(tmp_path)
    assert names_in(tmp_path) == [JOB]


# names


@pytest.mark.parametrize("bad", BAD_IDS)
def test_what_is_no_id_never_becomes_a_path(tmp_path, bad):
    bodies, media = JobBodies(tmp_path / "none"), MediaFiles(tmp_path / "none")
    calls = [
        lambda: bodies.write(bad, b""),
        lambda: bodies.read(bad),
        lambda: bodies.write_photo(bad, 0, b""),
        lambda: bodies.photo_path(bad, 0),
        lambda: bodies.delete(bad),
        lambda: media.save(bad, pictures(1)),
        lambda: media.path(bad, "0.png"),
        lambda: media.delete(bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not an id"):
            call()


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_what_is_no_picture_s_name_never_becomes_a_path(media, bad):
    with pytest.raises(ValueError, match="not an id or name"):
        media.path(JOB, bad)


@given(media_id=st.text(max_size=40), name=st.text(max_size=12))
def test_a_path_stays_inside_its_folder_whatever_is_asked(media_id, name):
    media = MediaFiles(Path("/data/media"))
    for asked in (media_id, JOB):
        try:
            path = media.path(asked, name)
        except ValueError:
            continue
        assert path.resolve().parent.parent == Path("/data/media")


# order of writing


@pytest.fixture
def calls(monkeypatch):
    """What the system has done, in order."""
    seen = []

    def watch(name, describe):
        real = getattr(os, name)

        def done(*args):
            real(*args)
            seen.append(describe(*args))

        monkeypatch.setattr(os, name, done)

    def synced(descriptor):
        return f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}"

    watch("fsync", synced)
    watch("replace", lambda source, target: f"rename {Path(source).name}")
    watch("rename", lambda source, target: f"rename {Path(source).name}")
    return seen


def test_a_body_is_on_the_disk_before_it_has_its_name(bodies, tmp_path, calls):
    bodies.write(JOB, b"body")
    assert calls == [f"fsync {JOB}.json.tmp", f"rename {JOB}.json.tmp", f"fsync {tmp_path.name}"]


def test_all_pictures_are_on_the_disk_before_their_folder_has_its_name(media, tmp_path, calls):
    media.save(JOB, pictures(1, 1))
    assert calls == [
        "fsync 0.png",
        "fsync 1.png",
        f"fsync {JOB}.tmp",
        f"rename {JOB}.tmp",
        f"fsync {tmp_path.name}",
    ]


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from server.jobs.files import ImageFile, JobBodies, MediaFiles
bodies, media = (kind(Path(folder)) for kind, folder in zip((JobBodies, MediaFiles), sys.argv[1:]))
picture = ImageFile(data=bytes(200_000), format="png", width=1, height=1)
print("started", flush=True)
while True:
    bodies.write("a" * 32, b"x" * 300_000)
    media.save("b" * 32, [picture, picture])
"""


def test_a_kill_while_writing_leaves_whole_files_or_none(tmp_path):
    folders = [tmp_path / "bodies", tmp_path / "media"]
    for folder in folders:
        folder.mkdir()
    for attempt in range(8):
        command = [sys.executable, "-c", WRITE_UNTIL_KILLED, *folders]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "started\n"
            time.sleep(0.01 + 0.005 * attempt)
            writer.kill()
        bodies, media = JobBodies.open(folders[0]), MediaFiles.open(folders[1])
        assert names_in(folders[0]) in ([], ["a" * 32 + ".json"])
        assert names_in(folders[1]) in ([], ["b" * 32])
        assert all(
            bodies.read(job_id) == b"x" * 300_000 for job_id in {path.stem for path in folders[0].iterdir()}
        )
        for media_id in media.media_ids():
            assert [path.stat().st_size for path in (folders[1] / media_id).iterdir()] == [200_000] * 2


# no room


def test_a_full_disk_is_storage_full_and_leaves_nothing(bodies, tmp_path):
    # The kernel's own full disk: a write to /dev/full is answered with ENOSPC.
    (tmp_path / f"{JOB}.json.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreFull):
        bodies.write(JOB, b"body")
    assert names_in(tmp_path) == []
    bodies.write(JOB, b"body")
    assert bodies.read(JOB) == b"body"


def in_a_process_of_its_own(check, folder):
    """Run a function of this file where its limits bind nobody else."""
    code = f"import runpy, sys; runpy.run_path({__file__!r})[{check.__name__!r}](sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, folder],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def expect_full(call):
    with pytest.raises(StoreFull):
        call()


def _write_beyond_the_file_size_limit(root):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    bodies, media = JobBodies(Path(root)), MediaFiles(Path(root))
    expect_full(lambda: bodies.write(JOB, b"x" * 60_000))
    expect_full(lambda: bodies.write_photo(JOB, 0, b"x" * 60_000))
    expect_full(lambda: media.save(JOB, pictures(100, 60_000)))
    assert names_in(Path(root)) == []
    bodies.write(JOB, b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    media.save(JOB, pictures(100, 60_000))


def test_a_file_that_may_not_grow_is_storage_full_and_passes(tmp_path):
    in_a_process_of_its_own(_write_beyond_the_file_size_limit, tmp_path)
    assert names_in(tmp_path) == [JOB, f"{JOB}.json"]


def _write_without_file_handles(root):
    bodies, media = JobBodies(Path(root)), MediaFiles(Path(root))
    bodies.write(OTHER, b"before")
    lowest_free = os.dup(0)
    os.close(lowest_free)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in (0, 1, 2):  # one handle is enough for a body, and for its folder once it is closed
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, most))
        if spare == 0:
            expect_full(lambda: bodies.write(JOB, b"body"))
            expect_full(lambda: bodies.write_photo(JOB, 0, b"photo"))
            expect_full(lambda: media.save(JOB, pictures(1, 1)))
            assert os.access(Path(root) / f"{OTHER}.json", os.R_OK)
        else:
            bodies.write(JOB, b"body")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert names_in(Path(root)) == [f"{JOB}.json", f"{OTHER}.json"]
    media.save(JOB, pictures(1, 1))


def test_without_file_handles_it_is_storage_full_and_passes(tmp_path):
    in_a_process_of_its_own(_write_without_file_handles, tmp_path)


def test_another_error_of_the_disk_is_told_as_it_is(tmp_path):
    bodies = JobBodies(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        bodies.write(JOB, b"body")


def test_free_room_is_what_the_disk_says(tmp_path):
    assert free_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
