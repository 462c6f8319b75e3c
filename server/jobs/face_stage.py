"""What a caller sent as their photo becomes the bytes of a photo file, beside the GPU.

The text is an http(s) URL, a data URI or bare base64. The fetcher and the look at the header are
handed in by app.py, so this file knows neither sockets nor picture formats. That look happens here,
in the server's process, and goes no further than the header; pixels are the worker's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

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

    async def read(self, photo: str) -> bytes:
        """The bytes of the photo file. Raises ImageRejected. Blocks nothing."""
        if not is_url(photo):
            return await anyio.to_thread.run_sync(self._checked_base64, photo)
        data = await self._fetch(photo.strip())
        await anyio.to_thread.run_sync(self._check, data)
        return data

    def _checked_base64(self, photo: str) -> bytes:
        data = from_base64(photo)
        if len(data) > self._max_mb * 1_000_000:
            raise ImageRejected(f"The photo is larger than {self._max_mb:g} MB. Send a smaller one.")
        self._check(data)
        return data


def is_url(photo: str) -> bool:
    return photo.lstrip()[:8].lower().startswith(("http://", "https://"))


def from_base64(photo: str) -> bytes:
    """Bytes of bare base64 or of a data URI; line breaks and missing padding are fine."""
    head, comma, tail = photo.strip().partition(",")
    if comma and not (head.lower().startswith("data:") and head.lower().endswith(";base64")):
        raise _not_a_photo()
    text = "".join((tail if comma else head).split())
    try:
        data = base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _not_a_photo() from exc
    if not data:
        raise _not_a_photo()
    return data


def _not_a_photo() -> ImageRejected:
    return ImageRejected(
        "The photo is not readable. Send an http(s) URL, a data URI (data:image/...;base64,...) "
        "or the base64 text of a photo."
    )
