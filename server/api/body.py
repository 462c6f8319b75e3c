"""Reading a request body: the right type, not too large, and never more in memory than allowed."""

from __future__ import annotations

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.errors import BodyTooLarge, ClientLeft, UnsupportedBody


async def read_json_body(request: Request, *, max_mb: float) -> bytes:
    """The bytes of a JSON body, unparsed. No content type at all counts as JSON.

    Raises UnsupportedBody, BodyTooLarge or ClientLeft.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("", "application/json"):
        raise UnsupportedBody("Send the parameters as a JSON object with Content-Type: application/json.")
    too_large = BodyTooLarge(f"The body is larger than {max_mb:g} MB. Send a smaller picture, or its URL.")
    limit = int(max_mb * 1_000_000)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as exc:
        raise ClientLeft("The client left before its request was complete.") from exc
    return bytes(body)


async def client_left(request: Request) -> None:
    """Return when the client has closed its connection. Only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
