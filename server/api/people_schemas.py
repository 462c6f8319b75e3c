"""Wire types of what goes beyond one photo of one person: several photos, identity files, several people.

Checks each person by themselves, and brings what is sent as base64 beside the photos (masks, identity
files) into its final form; so checking costs CPU. Which of the ways to name a person may be mixed is
judged by whoever has all of a request (`v1_schemas`). Knows no routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pulid.engine import Box, FaceChoice, FaceOrder, Fusion, Mask, Person, Region
from pulid.errors import ImageRejected
from server.fields import NotBoolean, Number, Whole, clean_unicode, explained
from server.jobs.face_stage import bytes_of_base64
from server.jobs.files import MAX_PHOTOS
from server.security.image_decode import decode_mask

MAX_PEOPLE = 4
MAX_IDENTITY_MB = 4  # what the engine reads at most


def _identity_file(value: object) -> bytes:
    """Whether it is one, only the engine knows."""
    try:
        data = bytes_of_base64(value) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if not data:
        raise explained("must be the base64 text of an identity file.")
    if len(data) > MAX_IDENTITY_MB * 2**20:
        raise explained(f"must be at most {MAX_IDENTITY_MB} MB as a file.")
    return data


def _mask(value: object) -> Mask:
    try:
        return Mask(decode_mask(bytes_of_base64(value if isinstance(value, str) else "")))
    except ImageRejected as exc:
        raise explained(f"cannot be used. {exc}") from None
    except ValueError:
        raise explained("must be a data URI or the base64 text of a picture.") from None


def _with_inside(box: list[float]) -> list[float]:
    if not (box[0] < box[2] and box[1] < box[3]):
        raise explained(f"must be {_BOX}.")
    return box


_BOX = (
    "[left, top, right, bottom] in fractions of the canvas from 0 to 1, left before right and"
    " top before bottom"
)

PhotoText = Annotated[
    str,
    Field(
        min_length=1,
        json_schema_extra={"x-allowed": "an http(s) URL, a data URI or the base64 text of a photo"},
    ),
    AfterValidator(clean_unicode),
]
Photos = Annotated[
    list[PhotoText],
    Field(
        min_length=1,
        max_length=MAX_PHOTOS,
        json_schema_extra={"x-allowed": f"a list of 1 to {MAX_PHOTOS} photos"},
    ),
]
# These become something else than what is sent.
IdentityFile = Annotated[
    bytes,
    BeforeValidator(_identity_file, json_schema_input_type=str),
    Field(json_schema_extra={"x-allowed": "the base64 text of an identity file"}),
]
MaskPicture = Annotated[
    Any,
    BeforeValidator(_mask, json_schema_input_type=str),
    Field(json_schema_extra={"x-allowed": "a data URI or the base64 text of a picture"}),
]
Corners = Annotated[  # left, top, right, bottom
    list[Annotated[float, Field(ge=0, le=1), NotBoolean]],
    Field(min_length=4, max_length=4, json_schema_extra={"x-allowed": _BOX}),
    AfterValidator(_with_inside),
]


class PersonInPicture(BaseModel):
    """One person of `faces`: where their face comes from, and where and when the picture sees it."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        json_schema_extra={"x-allowed": "an object that describes one person"},
    )

    photo: PhotoText | None = Field(None, description="Their photo. Or photos, or an identity.")
    photos: Photos | None = Field(None, description="Several photos of them.")
    identity: IdentityFile | None = Field(None, description="Their identity file, as base64.")
    fusion: Fusion = Field("mean", description="How several photos become one identity.")
    face_index: Whole = Field(0, ge=0, description="Which face of each photo, in face_order.")
    face_order: FaceOrder = Field("largest", description="How the faces of a photo are counted.")
    box: Corners | None = Field(None, description="Where on the canvas they are. Or a mask; or everywhere.")
    mask: MaskPicture | None = Field(
        None, description="A picture of any size, stretched over the canvas: white is where they are."
    )
    weight: Number = Field(1.05, ge=0, le=3, description="How strongly their face leads, as id_weight.")
    start_step: Whole = Field(0, ge=0, le=20, description="First step that sees them.")
    end_step: Annotated[int, Field(ge=0, le=20), NotBoolean] | None = Field(
        None, description="First step that no longer sees them. Absent or null: they stay to the end."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @model_validator(mode="after")
    def _one_source_and_one_place(self) -> Self:
        if sum(source is not None for source in (self.photo, self.photos, self.identity)) != 1:
            raise explained("must have a photo, photos or an identity, and only one of them.")
        if self.box is not None and self.mask is not None:
            raise explained("must have a box or a mask, not both.")
        return self

    def photos_by_place(self) -> dict[str, str]:
        """Their photos, each under the name of its field."""
        if self.photo is not None:
            return {"photo": self.photo}
        return {f"photos[{number}]": photo for number, photo in enumerate(self.photos or ())}

    def to_person(self, photos_before: int, *, strict_face: bool) -> Person:
        """In the engine's words; `photos_before`: how many photos of the request are other people's."""
        count = len(self.photos_by_place())
        return Person(
            photos=tuple(range(photos_before, photos_before + count)),
            identity=self.identity,
            fusion=self.fusion,
            face=FaceChoice(index=self.face_index, order=self.face_order, strict=strict_face),
            region=self._region(),
            weight=self.weight,
            start_step=self.start_step,
            end_step=self.end_step,
        )

    def _region(self) -> Region | None:
        if self.box is not None:
            left, top, right, bottom = self.box
            return Box(left=left, top=top, right=right, bottom=bottom)
        mask: Mask | None = self.mask
        return mask


People = Annotated[
    list[PersonInPicture],
    Field(
        min_length=1,
        max_length=MAX_PEOPLE,
        json_schema_extra={"x-allowed": f"a list of 1 to {MAX_PEOPLE} people"},
    ),
]


def photos_of_one(main: str | None, more: Sequence[str] | None) -> dict[str, str]:
    """The photos of one person, each under the name of its field; the main one first."""
    photos = {} if main is None else {"main_face_image": main}
    return photos | {f"face_images[{number}]": photo for number, photo in enumerate(more or ())}
