"""The identity file of a person: their photos are read once, and later requests send the file instead.

Not in the contract. A call has the walls of v1 (key, budget, size, photo rules), makes no job and
leaves nothing behind. What is in the file only the engine knows.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Self

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pulid.engine import FaceChoice, FaceOrder, Fusion
from server.api.body import received_json
from server.api.deps import NEEDS_BUDGET, NEEDS_KEY, ServiceDep, SettingsDep
from server.api.faces import MAX_WAIT_S, for_client
from server.api.people_schemas import Photos, PhotoText, photos_of_one
from server.api.responses import described
from server.api.v1 import form_of
from server.api.v1_schemas import invalid, json_object, problems_with_number
from server.errors import FieldProblem, InvalidParameters
from server.fields import Whole, schema_of

router = APIRouter(tags=["faces"], dependencies=[NEEDS_KEY])

FILE_NAME = "identity.safetensors"
_SOURCES = ("main_face_image", "face_images")


class IdentityRequest(BaseModel):
    """The parameters of a picture that are about its photos. Unknown fields are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", json_schema_extra={"anyOf": [{"required": [name]} for name in _SOURCES]}
    )

    main_face_image: PhotoText | None = Field(
        None, description="Photo with the face to keep: an http(s) URL, a data URI or bare base64."
    )
    face_images: Photos | None = Field(
        None, description="More photos of the same person; main_face_image may then be left out."
    )
    face_fusion: Fusion = Field("mean", description="How several photos become one identity.")
    face_index: Whole = Field(0, ge=0, description="Which face of each photo, in face_order.")
    face_order: FaceOrder = Field("largest", description="How the faces of a photo are counted.")
    strict_face: bool = Field(False, description="true: refuse a photo with several faces.")

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises UnparsableBody or InvalidParameters. Costs CPU for a large body: not on the event loop."""
        given = {name: value for name, value in json_object(body).items() if value is not None}
        if not any(name in given for name in _SOURCES):
            raise InvalidParameters([FieldProblem("main_face_image", "main_face_image is required.")])
        try:
            request = cls.model_validate(given)
        except ValidationError as exc:
            raise invalid(cls, exc) from None
        if problems := problems_with_number(request.photos_by_place()):
            raise InvalidParameters(problems)
        return request

    def photos_by_place(self) -> dict[str, str]:
        return photos_of_one(self.main_face_image, self.face_images)

    @property
    def face(self) -> FaceChoice:
        return FaceChoice(index=self.face_index, order=self.face_order, strict=self.strict_face)


class IdentityAnswer(BaseModel):
    """The JSON form."""

    identity: str = Field(description="The file as base64: what the field identity takes.")


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": schema_of(IdentityRequest),
            "example": {
                "face_images": ["https://example.com/face.jpg", "https://example.com/another.jpg"],
            },
        }
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The identity file, or JSON with it.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": IdentityAnswer.model_json_schema()},
        },
        "headers": {
            "content-disposition": {
                "description": f"Names the file {FILE_NAME}.",
                "schema": {"type": "string"},
            }
        },
    },
    **described(400, 401, 406, 413, 429, 500, 503, 504),
}


@router.post(
    "/v1/identities",
    response_class=Response,
    responses=_RESPONSES,
    dependencies=[NEEDS_BUDGET],
    openapi_extra={"requestBody": _BODY},
)
async def make_identity(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    response_format: Annotated[
        str | None,
        Query(
            description="The form of the answer: the file's bytes, or JSON.",
            json_schema_extra={"enum": ["bytes", "json"]},
        ),
    ] = None,
) -> Response:
    """Make the identity file of the person in photos."""
    form = form_of(request, response_format, default="bytes")
    async with received_json(request, max_mb=settings.max_body_mb) as body:
        asked = await anyio.to_thread.run_sync(IdentityRequest.parse, body)
        del body
        timeout_s = min(settings.v1_timeout_s, MAX_WAIT_S)
        made = service.identity(photos_of(asked), asked.face_fusion, asked.face, timeout_s=timeout_s)
        identity = await for_client(request, made)
    if form == "json":
        answer = IdentityAnswer(identity=base64.b64encode(identity).decode("ascii"))
        return Response(answer.model_dump_json(), media_type="application/json")
    headers = {"content-disposition": f'attachment; filename="{FILE_NAME}"'}
    return Response(identity, headers=headers, media_type="application/octet-stream")


def photos_of(asked: IdentityRequest) -> Mapping[str, str]:
    """The photos, each under the name by which an error tells of it; a main one alone needs none."""
    photos = asked.photos_by_place()
    return photos if asked.face_images else {"": photos["main_face_image"]}
