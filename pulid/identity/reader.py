"""People as a request names them -> identities: photos are read once, identity files are checked.

Face reader and encoder with a memory: what was read from a photo is kept by the photo's content and
the face that was meant. Of a photo file the content is its bytes, so a known one is not decoded.
Does not know: how files are decoded, prompts, where in the picture a person goes (`people`), how
tokens reach the transformer (`attention`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from pulid.cache import LruCache
from pulid.engine import FaceChoice, Fusion, Person, PhotoFile, RgbImage
from pulid.errors import BadRequest, about_photo
from pulid.identity.encoder import IdentityEncoder
from pulid.identity.face import FaceReader
from pulid.identity.identity_file import fingerprint, read_identity, write_identity
from pulid.identity.likeness import unit
from pulid.identity.people import Identity, fuse
from pulid.identity.region import check_region

CACHED_IDENTITIES = 64  # at full size 128 KiB each


class Photo:
    """A photo of a request. What is in it is summed up once, when somebody asks."""

    def __init__(self, source: RgbImage | PhotoFile) -> None:
        self._source = source
        self.decoding_s: float | None = None  # None: its pixels were there, or not needed

    @cached_property
    def content(self) -> bytes:
        """What two photos share only if every byte is the same: of the file, or else of the pixels.

        SHA-256: processors have it in hardware.
        """
        if isinstance(self._source, PhotoFile):
            kind, data = "file", memoryview(self._source.data)
        else:
            kind, data = str(self._source.shape), np.ascontiguousarray(self._source).data
        digest = hashlib.sha256(kind.encode())
        digest.update(data)
        return digest.digest()

    def pixels(self) -> RgbImage:
        """A file's are made now, and kept by nobody here: large ones take 180 MB. Raises ImageRejected."""
        if not isinstance(self._source, PhotoFile):
            return self._source
        started = time.perf_counter()
        pixels = self._source.decode(self._source.data)
        self.decoding_s = (self.decoding_s or 0.0) + time.perf_counter() - started
        return pixels


class IdentityReader:
    """`detecting` is held by whoever uses the detectors: they serve one thread at a time."""

    def __init__(self, faces: FaceReader, encoder: IdentityEncoder, detecting: threading.Lock) -> None:
        self._faces = faces
        self._encoder = encoder
        self._detecting = detecting
        self._identities: LruCache[tuple[bytes, FaceChoice], Identity] = LruCache(CACHED_IDENTITIES)
        self.tokens_per_photo = encoder.idformer.num_queries
        self.checkpoint = fingerprint((encoder.idformer, encoder.eva))

    def knows(self, photos: Sequence[Photo], person: Person) -> bool:
        """Whether `read` would answer from memory."""
        return all((photos[index].content, person.face) in self._identities for index in person.photos)

    def read(self, photos: Sequence[Photo], person: Person) -> Identity:
        """One person; `photos` are the request's.

        Raises ImageRejected, NoFaceFound, SeveralFaces or IdentityRejected.
        """
        if person.identity is not None:
            return self._from_file(person.identity)
        return self._fused([(index, photos[index]) for index in person.photos], person.fusion, person.face)

    def read_photos(self, photos: Sequence[Photo], fusion: Fusion, face: FaceChoice) -> Identity:
        """Several photos of one person. Raises NoFaceFound or SeveralFaces."""
        if not photos:
            raise BadRequest("An identity needs at least one photo of the person.")
        return self._fused(enumerate(photos), fusion, face)

    def as_file(self, identity: Identity) -> bytes:
        """Raises BadRequest for more photos side by side than a file may hold."""
        return write_identity(identity, self.checkpoint, tokens_per_photo=self.tokens_per_photo)

    def _fused(self, numbered: Iterable[tuple[int, Photo]], fusion: Fusion, face: FaceChoice) -> Identity:
        identities = []
        for number, photo in numbered:
            with about_photo(number):
                identities.append(self._from_photo(photo, face))
        return fuse(identities, fusion)

    def _from_photo(self, photo: Photo, face: FaceChoice) -> Identity:
        def make() -> Identity:
            pixels = photo.pixels()  # others may use the detectors meanwhile
            with self._detecting:
                crop = self._faces.read(pixels, face)
                return Identity(self._encoder.encode(crop), unit(crop.face_embedding))

        return self._identities.get_or_make((photo.content, face), make)

    def _from_file(self, data: bytes) -> Identity:
        read = read_identity(
            data,
            checkpoint=self.checkpoint,
            tokens_per_photo=self.tokens_per_photo,
            token_width=self._encoder.idformer.proj_out.shape[1],
        )
        tokens = read.tokens.to(device=self._encoder.device, dtype=self._encoder.dtype)
        return Identity(tokens, read.face_embedding)


def check_people(people: Sequence[Person], photos: int) -> None:
    """Raises BadRequest where a person has no face to come from, or no place to go."""
    for person in people:
        if bool(person.photos) == (person.identity is not None):
            raise BadRequest("Give each person either photos or an identity file.")
        if not all(0 <= index < photos for index in person.photos):
            raise BadRequest(f"A person names a photo that is not there: {photos} came with the request.")
        if person.region is not None:
            check_region(person.region)
