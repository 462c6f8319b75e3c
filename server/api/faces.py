"""The faces of a photo: what a page shows before it asks for a picture of one of them.

Not in the contract. A call has the walls of v1 (key, budget, size, photo rules), makes no job and
leaves nothing behind. Its faces are counted as `face_index` counts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.api.body import client_left, received_json
from server.api.deps import NEEDS_BUDGET, NEEDS_KEY, ServiceDep, SettingsDep
from server.api.responses import described
from server.api.v1_schemas import invalid, json_object
from server.errors import ClientLeft
from server.fields import clean_unicode
from server.jobs.messages import FacesFound

T = TypeVar("T")

router = APIRouter(tags=["faces"], dependencies=[NEEDS_KEY])

MAX_WAIT_S = 30.0  # a person waits
_DIGITS = 4  # of a fraction or a score: a tenth of a pixel in the usual photo


class FacesRequest(BaseModel):
    """Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str = Field(
        min_length=1,
        description="The photo: an http(s) URL, a data URI or bare base64.",
        json_schema_extra={"x-allowed": "an http(s) URL, a data URI or the base64 text of a photo"},
    )

    @field_validator("image")
    @classmethod
    def _clean_unicode(cls, value: str) -> str:
        return clean_unicode(value)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises UnparsableBody or InvalidParameters. Costs CPU for a large body: not on the event loop."""
        given = {name: value for name, value in json_object(body).items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as exc:
            raise invalid(cls, exc) from None


class Face(BaseModel):
    index: int = Field(description="From 0, the largest face: what face_index takes.")
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="Left, top, right and bottom, in fractions of the upright photo's width and height.",
    )
    score: float = Field(description="How sure the detector is, from 0 to 1.")


class FacesAnswer(BaseModel):
    """A photo without a face has an empty list."""

    faces: list[Face]
    width: int = Field(description="Of the upright photo, pixels.")
    height: int


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": FacesRequest.model_json_schema(),
            "example": {"image": "https://example.com/face.jpg"},
        }
    },
}


@router.post(
    "/v1/faces",
    responses=described(400, 401, 406, 413, 429, 500, 503, 504),
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
)
async def find_faces(request: Request, service: ServiceDep, settings: SettingsDep) -> FacesAnswer:
    """Find the faces of a photo, the largest first."""
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        photo = (await anyio.to_thread.run_sync(FacesRequest.parse, body)).image
        del body
        timeout_s = min(settings.v1_timeout_s, MAX_WAIT_S)
        found = await for_client(request, service.faces(photo, timeout_s=timeout_s))
    return in_wire_words(found)


async def for_client(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, unless the client leaves before."""
    answer = asyncio.create_task(work)
    left = asyncio.create_task(client_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientLeft("The client left before its photo was looked at.")
        return answer.result()
    finally:
        answer.cancel()
        left.cancel()


def in_wire_words(found: FacesFound) -> FacesAnswer:
    faces = []
    for index, face in enumerate(found.faces):
        corners = (face.box.left, face.box.top, face.box.right, face.box.bottom)
        box = [round(corner, _DIGITS) for corner in corners]
        faces.append(Face(index=index, box=box, score=round(face.score, _DIGITS)))
    return FacesAnswer(faces=faces, width=found.width, height=found.height)
