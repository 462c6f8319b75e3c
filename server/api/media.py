"""Finished pictures, by the link that a result names. The link is the key: no other is asked for.

A picture is looked up in the store by its two names and never by path. Neither name is ever
logged; the request's log line has the route's template.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from pulid.errors import BadRequest
from server.api.deps import ServiceDep
from server.api.responses import described
from server.jobs.files import CONTENT_TYPES
from server.jobs.job import JobNotFound, NotReady

router = APIRouter(tags=["media"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()
        },
    },
    **described(404, 500, 503),
}


class PictureNotFound(BadRequest):
    code = "not_found"

    def __init__(self) -> None:
        super().__init__("There is no such picture. It may have expired or been deleted with its request.")


@router.api_route(
    "/outputs/{media_id}/{name}", methods=["GET"], response_class=Response, responses=_RESPONSES
)
@router.api_route("/outputs/{media_id}/{name}", methods=["HEAD"], include_in_schema=False)
async def picture(media_id: str, name: str, service: ServiceDep) -> Response:
    """One finished picture."""
    try:
        data, file = await service.media(media_id, name)
    except (JobNotFound, FileNotFoundError):
        raise PictureNotFound from None
    except OSError as exc:  # no file handle is free, or the disk is gone: before the status line is sent
        raise NotReady("The picture cannot be read now. Try again in a moment.") from exc
    return Response(
        data,
        media_type=file.content_type,
        headers={
            "content-disposition": f'inline; filename="{file.name}"',
            "cache-control": "private, max-age=3600",
        },
    )
