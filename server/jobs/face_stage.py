"""What a caller sent as their photo becomes the bytes of a photo file, beside the GPU.

The text is an http(s) URL, a data URI or bare base64. The fetcher and the look at the header are
handed in by app.py, so this file knows neither sockets nor picture formats. That look happens here,
in the server's process, and goes no further than the header; pixels are the worker's.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio.to_thread

from pulid.errors import ImageRejected

FetchPhoto = Callable[[str], Awaitable[bytes]]
CheckPhoto = Callable[[bytes], None]  # raises ImageRejected


class FaceStage:
    def __init__(self, *, fetch: FetchPhoto, check: CheckPhoto, max_mb: float) -> None:
        """`max_mb`: of a photo that was sent; the fetcher has its own eyes on one that it fetches."""
        self._fetch = fetch
        self._check = check
        self._max_mb = max_mb

    async def read(self, photo: str, place: str = "") -> bytes:
        """The bytes of the photo file. Raises ImageRejected. Blocks nothing."""
        return await anyio.to_thread.run_sync(await self.source(photo, place))

    async def source(self, photo: str, place: str = "") -> Callable[[], bytes]:
        """What gives the bytes of the photo file when it is called, in a thread; a URL is fetched before.

        Both raise ImageRejected, about the field `place` if one is named.
        """
        with _about(place):
            data = await self._fetch(photo.strip()) if is_url(photo) else None
        return partial(self._checked, photo if data is None else data, place)

    def _checked(self, photo: str | bytes, place: str) -> bytes:
        with _about(place):
            data = self._from_base64(photo) if isinstance(photo, str) else photo
            self._check(data)
            return data

    def _from_base64(self, photo: str) -> bytes:
        data = from_base64(photo)
        if len(data) > self._max_mb * 1_000_000:
            raise ImageRejected(f"The photo is larger than {self._max_mb:g} MB. Send a smaller one.")
        return data


@contextmanager
def _about(place: str) -> Iterator[None]:
    """Where there are several photos, a refusal says which one it is about."""
    try:
        yield
    except ImageRejected as exc:
        if not place:
            raise
        # The text about fetching names the field of the plain contract.
        text = str(exc).replace("main_face_image", place)
        raise ImageRejected(text if place in text else f"{place}: {text}") from exc


def is_url(photo: str) -> bool:
    return photo.lstrip()[:8].lower().startswith(("http://", "https://"))


def from_base64(photo: str) -> bytes:
    """The bytes of a photo that was sent. Raises ImageRejected."""
    try:
        return bytes_of_base64(photo)
    except ValueError as exc:
        raise ImageRejected(
            "The photo is not readable. Send an http(s) URL, a data URI (data:image/...;base64,...) "
            "or the base64 text of a photo."
        ) from exc


def bytes_of_base64(text: str) -> bytes:
    """Of bare base64 or of a data URI; line breaks and missing padding are fine. Raises ValueError."""
    head, comma, tail = text.strip().partition(",")
    if comma and not (head.lower().startswith("data:") and head.lower().endswith(";base64")):
        raise ValueError("a comma, and no data URI before it")
    digits = "".join((tail if comma else head).split()).rstrip("=")
    data = a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
    if not data:
        raise ValueError("no bytes")
    return data
