"""What the published schema says about errors and request bodies, the same on every route."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from server.api.v1_schemas import ErrorAnswer, FluxPulidRequest
from server.fields import schema_of

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": schema_of(FluxPulidRequest),
            "example": {
                "main_face_image": "https://example.com/face.jpg",
                "prompt": "portrait of woman, neon color, cinematic",
            },
        }
    },
}

_MEANINGS = {
    400: "The body, a parameter or the photo is not usable; the text says which and why.",
    401: "No API key, or not one of this server's.",
    404: "There is no such request or picture: unknown, expired, or another key's.",
    406: "The body is not JSON.",
    409: "In conflict with an earlier call: a cancelled job, or an Idempotency-Key with another body.",
    413: "The body is too large.",
    429: "The queue is full, or the key's limit is reached; Retry-After says when to come back.",
    500: "A fault of the server.",
    503: "Not now: loading, going down, disk or device memory full; Retry-After says when to come back.",
    504: "The picture was not ready in time.",
}


def described(*statuses: int, model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """Entries for a route's `responses`."""
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}
