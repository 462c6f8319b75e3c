"""Reading a request body: the right type, not too large, and never more in memory than allowed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from pulid.errors import Busy
from server.errors import BodyTooLarge, ClientLeft, UnparsableBody, UnsupportedBody


class BodyRoom:
    """Memory for the bodies of all calls that are being read or accepted at a time."""

    def __init__(self, size: int) -> None:
        self._left = size  # bytes

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Room for one body during the block. Raises Busy where there is none."""
        if size > self._left:
            raise Busy("The server is reading as many requests as it can. Try again in a few seconds.")
        self._left -= size
        try:
            yield
        finally:
            self._left += size


@asynccontextmanager
async def received_json(request: Request, *, max_mb: float) -> AsyncIterator[bytes]:
    """The bytes of a JSON body, unparsed; they must be given up with the block.

    No content type at all counts as JSON. Raises UnsupportedBody, BodyTooLarge, Busy or ClientLeft.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("", "application/json"):
        raise UnsupportedBody("Send the parameters as a JSON object with Content-Type: application/json.")
    too_large = BodyTooLarge(f"The body is larger than {max_mb:g} MB. Send a smaller photo, or its URL.")
    limit = int(max_mb * 1_000_000)
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else limit
    if size > limit:
        raise too_large
    room: BodyRoom = request.app.state.body_room
    with room.taken(size):
        yield await _read(request, limit, too_large)


async def _read(request: Request, limit: int, too_large: BodyTooLarge) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as exc:
        raise ClientLeft("The client left before its request was complete.") from exc
    return bytes(body)


def written_json(fields: Mapping[str, Any]) -> bytes:
    """A body with these fields, which came out of another one. Raises UnparsableBody."""
    try:
        return json.dumps(fields).encode()
    except RecursionError:
        raise UnparsableBody("The body is nested too deeply.") from None


async def client_left(request: Request) -> None:
    """Return when the client has closed its connection. Only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
