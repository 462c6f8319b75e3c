"""What an evaluation reads: a folder of photos and a file of prompts.

A photo that cannot be read does not end an evaluation: it is carried along with what is wrong with it.
Whether there is a face in a photo is not known here; that takes an engine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pulid.engine import RgbImage
from pulid.errors import ImageRejected
from server.errors import FieldProblem, InvalidParameters
from server.security.image_decode import decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")


@dataclass(frozen=True, slots=True)
class Photo:
    """One file of the folder."""

    number: int  # from 1, in the order of names
    path: Path
    sha256: str  # of the file; empty where it cannot be read
    problem: str = ""  # why it cannot be used

    @property
    def name(self) -> str:
        return self.path.name


def wrong(name: str, message: str) -> InvalidParameters:
    """What is wrong with one argument of the command."""
    return InvalidParameters([FieldProblem(name, message)])


def read_photos(folder: Path, *, max_megapixels: float) -> tuple[Photo, ...]:
    """The photos that lie directly in `folder`, by name. Raises InvalidParameters where none is readable."""
    try:
        files = sorted(file for file in folder.iterdir() if _is_a_photo(file))
    except OSError as exc:
        raise wrong("faces", f"The folder of faces {folder} cannot be read: {exc.strerror}.") from exc
    if not files:
        raise wrong("faces", f"The folder {folder} holds no photo, that is no {', '.join(SUFFIXES)}.")
    photos = tuple(_examined(number, file, max_megapixels) for number, file in enumerate(files, 1))
    if all(photo.problem for photo in photos):
        first = photos[0]
        raise wrong("faces", f"No photo in {folder} can be read. The first, {first.name}: {first.problem}")
    return photos


def _is_a_photo(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _examined(number: int, file: Path, max_megapixels: float) -> Photo:
    if not file.name.isprintable():  # also what is no Unicode: such names cannot stand in a report
        raise wrong("faces", f"The file name {file.name!r} has characters that cannot be shown. Rename it.")
    try:
        data = file.read_bytes()
        decode_image(data, max_megapixels=max_megapixels)
    except OSError as exc:
        return Photo(number, file, "", f"The file cannot be read: {exc.strerror}.")
    except ImageRejected as exc:
        return Photo(number, file, hashlib.sha256(data).hexdigest(), str(exc))
    return Photo(number, file, hashlib.sha256(data).hexdigest())


def load_photo(photo: Photo, *, max_megapixels: float) -> RgbImage:
    """The pixels of a photo that was readable at the start. Raises ImageRejected where it has changed."""
    try:
        data = photo.path.read_bytes()
    except OSError as exc:
        raise ImageRejected(f"The photo {photo.path} can no longer be read: {exc.strerror}.") from exc
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise ImageRejected(
            f"The photo {photo.path} has changed since the evaluation began. "
            "Put the old one back and give the same command again, or begin another report."
        )
    return decode_image(data, max_megapixels=max_megapixels)


def read_prompts(file: Path) -> tuple[str, ...]:
    """One prompt a line; blank lines and lines that begin with # do not count. Raises InvalidParameters."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as exc:
        raise wrong("prompts", f"The file of prompts {file} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise wrong("prompts", f"The file of prompts {file} is no UTF-8 text. Save it as UTF-8.") from exc
    prompts = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    if not prompts:
        raise wrong("prompts", f"The file {file} holds no prompt. Write one in each line.")
    return prompts
