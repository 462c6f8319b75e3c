"""Everything of a job that is a file: its body and photos while it is unfinished, its pictures after.

A file is written under a temporary name, fsynced and renamed, so that a final name always has whole
content, through any kill. A write that fails leaves nothing behind, and a full disk is StoreFull.
Ids and names are checked before they become paths. Modes are 0600 and 0700: bodies hold photos.
Knows no records, no routes, no wire. All of it blocks: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from pulid.engine import RgbImage
from server.jobs.job import JobFile, StoreFull

MAX_PHOTOS = 8  # of one job

ImageFormat = Literal["png", "jpg", "webp"]

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}

ID = re.compile(r"[0-9a-f]{32}")
MEDIA_NAME = re.compile(rf"[0-9]{{1,2}}\.({'|'.join(CONTENT_TYPES)})")
_BODY, _TEMPORARY = ".json", ".tmp"
_PHOTOS = tuple(f".photo.{number}" for number in range(MAX_PHOTOS))

# No room on the disk, in a quota, under a file size limit, or in the table of open files.
_NO_ROOM = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,  # what a kernel turns a failing disk into
    errno.EMFILE,
    errno.ENFILE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    format: ImageFormat = "webp"
    quality: int = 80  # 1..100; jpg and webp


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    data: bytes
    format: ImageFormat
    width: int  # pixels, of the picture itself
    height: int

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


def encode_image(image: RgbImage, options: OutputOptions) -> ImageFile:
    """One picture, uint8 (height, width, 3), as the bytes of a file without metadata.

    Costs up to a second of CPU for a large picture.
    """
    buffer = BytesIO()
    picture = Image.fromarray(image)
    if options.format == "png":
        picture.save(buffer, format="PNG")
    elif options.format == "jpg":
        picture.save(buffer, format="JPEG", quality=options.quality, optimize=True)
    else:
        picture.save(buffer, format="WEBP", quality=options.quality)
    height, width, _ = image.shape
    return ImageFile(data=buffer.getvalue(), format=options.format, width=width, height=height)


def encode_images(images: Iterable[RgbImage], options: OutputOptions) -> tuple[ImageFile, ...]:
    return tuple(encode_image(image, options) for image in images)


class BodyStore(Protocol):
    """The request body of each unfinished job, where whoever takes the job can read it."""

    def write(self, job_id: str, body: bytes) -> None:
        """Store a body; on return it survives a power cut. Raises StoreFailed."""
        ...

    def read(self, job_id: str) -> bytes:
        """Raises FileNotFoundError where there is none, and other OSErrors."""
        ...

    def delete(self, job_id: str) -> None: ...

    def delete_others(self, job_ids: Collection[str], *, older_than_s: float = 0.0) -> None:
        """Remove what is not of these jobs, and has been there for so long."""
        ...

    def probe(self) -> None:
        """Write something small and remove it. Raises StoreFailed."""
        ...


class MediaStore(Protocol):
    """The pictures of each job, under its media id. Travels to workers by pickle."""

    def save(self, media_id: str, files: Sequence[ImageFile]) -> tuple[JobFile, ...]:
        """Store all pictures of a job or none; on return they survive a power cut. Raises StoreFailed."""
        ...

    def read(self, media_id: str, name: str) -> bytes:
        """Raises FileNotFoundError where there is none, and other OSErrors."""
        ...

    def delete(self, media_id: str) -> None: ...

    def media_ids(self, *, older_than_s: float = 0.0) -> set[str]: ...


class JobBodies:
    """The request body of each unfinished job as it was sent, and its photos once they are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path) -> JobBodies:
        """The bodies in `folder`, for the one process that writes them: half-written files are removed."""
        for leftover in folder.glob(f"*{_TEMPORARY}"):
            leftover.unlink()
        return cls(folder)

    def write(self, job_id: str, body: bytes) -> None:
        """Store a body; on return it survives a power cut. Raises StoreFull."""
        _put(self._path(job_id, _BODY), body, durable=True)

    def read(self, job_id: str) -> bytes:
        """Raises FileNotFoundError where there is none."""
        return self._path(job_id, _BODY).read_bytes()

    def write_photo(self, job_id: str, number: int, data: bytes) -> Path:
        """Store a photo, as long as the machine runs: it can be fetched again. Raises StoreFull."""
        path = self.photo_path(job_id, number)
        _put(path, data, durable=False)
        return path

    def photo_path(self, job_id: str, number: int) -> Path:
        """`number`: from 0, below MAX_PHOTOS."""
        return self._path(job_id, _PHOTOS[number])

    def delete(self, job_id: str) -> None:
        """Remove body and photos, as far as they are there."""
        start = str(self._path(job_id, ""))
        for ending in (_BODY, *_PHOTOS):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(start + ending)  # noqa: PTH108  # a v1 call waits; Path takes longer than the disk

    def delete_others(self, job_ids: Collection[str], *, older_than_s: float = 0.0) -> None:
        """Remove every file of jobs that are not among these, if it has been there for so long."""
        for path in self._folder.iterdir():
            job_id = _job_of(path)
            if job_id is not None and job_id not in job_ids and _is_older(path, older_than_s):
                path.unlink(missing_ok=True)

    def probe(self) -> None:
        """Write a small file and remove it. Raises StoreFull."""
        path = self._folder / f"probe{_TEMPORARY}"
        with _no_room_is_store_full():
            try:
                _write(path, bytes(4096), durable=True)
            finally:
                path.unlink(missing_ok=True)

    def _path(self, job_id: str, suffix: str) -> Path:
        return self._folder / (checked(ID, job_id) + suffix)


class MediaFiles:
    """The pictures of each job in a folder of their own, whose name is the job's media id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open(cls, folder: Path) -> MediaFiles:
        """The media in `folder`, before any worker runs: half-written sets of pictures are removed."""
        for leftover in folder.glob(f"*{_TEMPORARY}"):
            shutil.rmtree(leftover)
        return cls(folder)

    def save(self, media_id: str, files: Sequence[ImageFile]) -> tuple[JobFile, ...]:
        """Store all pictures of a job or none; on return they survive a power cut. Raises StoreFull."""
        folder = self._folder_of(media_id)
        named = {f"{index}.{file.format}": file for index, file in enumerate(files)}
        with _no_room_is_store_full():
            try:
                _put_folder(folder, {name: file.data for name, file in named.items()})
            except BaseException:
                for unfinished in (_temporary(folder), folder):
                    _discard(unfinished, named)
                raise
        return tuple(job_file(name, file) for name, file in named.items())

    def path(self, media_id: str, name: str) -> Path:
        return self._folder_of(media_id) / checked(MEDIA_NAME, name)

    def read(self, media_id: str, name: str) -> bytes:
        return self.path(media_id, name).read_bytes()

    def delete(self, media_id: str) -> None:
        """Remove the pictures of a job, if they are there."""
        _remove_whole(self._folder_of(media_id))

    def media_ids(self, *, older_than_s: float = 0.0) -> set[str]:
        return {
            path.name
            for path in self._folder.iterdir()
            if ID.fullmatch(path.name) and _is_older(path, older_than_s)
        }

    def _folder_of(self, media_id: str) -> Path:
        return self._folder / checked(ID, media_id)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write to the disk that `folder` is on."""
    return shutil.disk_usage(folder).free


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, as fsync does for the content of a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_older(path: Path, seconds: float) -> bool:
    """Whether it has been as it is for so long. What another has just removed is not."""
    if not seconds:
        return True
    try:
        return path.stat().st_mtime < time.time() - seconds
    except FileNotFoundError:
        return False


def _job_of(path: Path) -> str | None:
    """Whose body or photo a file is; None for what is neither."""
    job_id = path.name.partition(".")[0]
    return job_id if ID.fullmatch(job_id) else None


def checked(form: re.Pattern[str], text: str) -> str:
    if not form.fullmatch(text):
        raise ValueError(f"not an id or name of this server's files: {text[:40]!r}")
    return text


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + _TEMPORARY)


def _put(path: Path, data: bytes, *, durable: bool) -> None:
    temporary = _temporary(path)
    with _no_room_is_store_full():
        try:
            _write(temporary, data, durable=durable)
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise


def _put_folder(folder: Path, contents: dict[str, bytes]) -> None:
    temporary = _temporary(folder)
    try:
        temporary.mkdir(mode=0o700)
    except FileExistsError:  # of a worker that was killed in here
        _remove_tree(temporary)
        temporary.mkdir(mode=0o700)
    for name, data in contents.items():
        _write(temporary / name, data, durable=True)
    sync_folder(temporary)
    try:
        temporary.rename(folder)
    except OSError as exc:  # of a try that was killed before its end was recorded
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _remove_whole(folder)
        temporary.rename(folder)
    sync_folder(folder.parent)


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        rest = memoryview(data)
        while rest:  # a disk that becomes full takes a part first
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path, names: Iterable[str]) -> None:
    """Undo `_put_folder` without opening anything: there may be no file handle left."""
    with contextlib.suppress(OSError):  # the error that led here is the one to tell
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _remove_whole(folder: Path) -> None:
    """Take its name from a folder before its content: nobody ever sees half of it."""
    gone = _temporary(folder.with_name(f"{folder.name}.gone"))
    _remove_tree(gone)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    _remove_tree(gone)


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def job_file(name: str, file: ImageFile) -> JobFile:
    return JobFile(
        name=name, content_type=file.content_type, width=file.width, height=file.height, size=len(file.data)
    )


@contextlib.contextmanager
def _no_room_is_store_full() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise StoreFull from exc
        raise
