"""Wire types of the synchronous contract, and their translation into the engine's words.

The request is forgiving where public clients need it (numbers as text, null for "not given",
unknown fields, `True_cfg`, `jpeg`) and strict elsewhere; docs/spec/CONTRACT.md, section 1, has the
reasons. Knows nothing of routes: the command line checks its flags with the same model.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pulid.engine import DEFAULT_NEGATIVE_PROMPT, FaceChoice, FaceOrder, Fusion, GenerationRequest, Person
from server.api.people_schemas import IdentityFile, People, Photos, PhotoText, photos_of_one
from server.api.similarity import IdentitySimilarity
from server.errors import FieldProblem, InvalidParameters, UnparsableBody
from server.fields import EXPLAINED, NotBoolean, Number, Whole, clean_unicode, explained, in_words, rule_at
from server.jobs.files import MAX_PHOTOS, ImageFormat, OutputOptions
from server.jobs.live import ParsedBody

MAX_SEED = 2**63 - 1
SOURCES = ("main_face_image", "face_images", "identity", "faces")  # where faces come from; one must be given
_MAX_PARTS = 100_000  # brackets and commas beside the prompts; megabytes of them become gigabytes of lists

WireFormat = Annotated[ImageFormat, BeforeValidator(lambda value: "jpg" if value == "jpeg" else value)]


class FluxPulidRequest(BaseModel):
    """The parameters of one flux-pulid call. Unknown fields are ignored; null means "not given"."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        json_schema_extra={"anyOf": [{"required": [name]} for name in SOURCES]},
    )

    main_face_image: PhotoText | None = Field(
        None, description="Photo with the face to keep: an http(s) URL, a data URI or bare base64."
    )
    prompt: str = Field(description="What to draw.", examples=["portrait of woman, neon color, cinematic"])
    negative_prompt: str = Field(
        DEFAULT_NEGATIVE_PROMPT, description="What to avoid; read only when true_cfg is above 1."
    )
    width: Whole = Field(896, ge=256, le=1536, description="Pixels; rounded up to a multiple of 16.")
    height: Whole = Field(1152, ge=256, le=1536, description="Pixels; rounded up to a multiple of 16.")
    num_steps: Whole = Field(20, ge=1, le=20, description="Denoising steps.")
    start_step: Whole = Field(0, ge=0, le=10, description="First step that sees the face; 0 to 4 advised.")
    guidance_scale: Number = Field(4, ge=1, le=10, description="How strongly the prompt leads.")
    id_weight: Number = Field(1.05, ge=0, le=3, description="How strongly the face leads; 0 turns it off.")
    true_cfg: Number = Field(
        1, ge=1, le=10, description="Above 1: real guidance by the negative prompt. Also spelled True_cfg."
    )
    max_sequence_length: Whole = Field(128, ge=128, le=512, description="T5 tokens of the prompt.")
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), NotBoolean] | None = Field(
        None, description="Absent, null, blank or -1: a random one. Picture i uses seed + i."
    )
    num_outputs: Whole = Field(1, ge=1, le=4, description="Pictures.")
    output_format: WireFormat = Field("webp", description="Also accepted: jpeg.")
    output_quality: Whole = Field(80, ge=1, le=100, description="For jpg and webp.")
    base64: bool = Field(False, description="true: answer with JSON that has the pictures as base64.")
    # What follows is not in the contract: docs/api.md, "Beyond the contract".
    face_index: Whole = Field(0, ge=0, description="Which face of the photo, in face_order; 0 is the first.")
    face_order: FaceOrder = Field("largest", description="How the faces of the photo are counted.")
    strict_face: bool = Field(False, description="true: refuse a photo with several faces.")
    id_end_step: Annotated[int, Field(ge=0, le=20), NotBoolean] | None = Field(
        None, description="First step that no longer sees the face. Absent or null: it stays to the end."
    )
    face_images: Photos | None = Field(
        None, description="More photos of the same person; main_face_image may then be left out."
    )
    face_fusion: Fusion = Field("mean", description="How several photos become one identity.")
    identity: IdentityFile | None = Field(None, description="An identity file, as base64, instead of photos.")
    faces: People | None = Field(
        None, description="Several people, each in a region of the canvas, instead of one."
    )
    identity_similarity: bool = Field(
        False, description="true: measure how much the picture looks like the photo, and answer with it."
    )

    @model_validator(mode="before")
    @classmethod
    def _known_spellings(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        if isinstance(seed := given.get("seed"), str) and not seed.strip():
            del given["seed"]
        if "True_cfg" in given:
            given.setdefault("true_cfg", given.pop("True_cfg"))
        return given

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _clean_unicode(cls, value: str) -> str:
        return clean_unicode(value)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _not_too_long(cls, value: str, info: ValidationInfo) -> str:
        limit = (info.context or {}).get("max_prompt_chars")
        if limit is not None and len(value) > limit:
            raise explained(f"must have at most {limit} characters.")
        return value

    @classmethod
    def of(cls, data: Mapping[str, Any], *, max_prompt_chars: int) -> Self:
        """Check the fields. Raises InvalidParameters with one problem for each wrong one."""
        problems = problems_with_sources(data)
        try:
            request = cls.model_validate(data, context={"max_prompt_chars": max_prompt_chars})
        except ValidationError as exc:
            raise InvalidParameters([*problems, *invalid(cls, exc).problems]) from None
        problems = problems or problems_with_number(request.photos_by_place())
        if problems:
            raise InvalidParameters(problems)
        return request

    def photos_by_place(self) -> dict[str, str]:
        """All photos in the order in which people count them, each under the name of its field."""
        photos = photos_of_one(self.main_face_image, self.face_images)
        for number, person in enumerate(self.faces or ()):
            photos |= {f"faces[{number}].{name}": text for name, text in person.photos_by_place().items()}
        return photos

    def to_generation(self) -> GenerationRequest:
        """In the engine's words, still without the photos. Draws the seed if none was given."""
        return GenerationRequest(
            people=self._people(),
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=secrets.randbits(32) if self.seed in (None, -1) else self.seed,
            width=self.width,
            height=self.height,
            num_steps=self.num_steps,
            start_step=self.start_step,
            guidance=self.guidance_scale,
            id_weight=self.id_weight,
            true_cfg=self.true_cfg,
            timestep_to_start_cfg=self.start_step,
            max_sequence_length=self.max_sequence_length,
            num_outputs=self.num_outputs,
            fusion=self.face_fusion,
            face=FaceChoice(index=self.face_index, order=self.face_order, strict=self.strict_face),
            id_end_step=self.id_end_step,
            measures_similarity=self.identity_similarity,
        )

    def _people(self) -> tuple[Person, ...]:
        """Those who are named, or the one of an identity file; none for the one person of photos."""
        if self.identity is not None:
            person = Person(
                identity=self.identity,
                weight=self.id_weight,
                start_step=self.start_step,
                end_step=self.id_end_step,
            )
            return (person,)
        people: list[Person] = []
        for wire in self.faces or ():
            photos_before = sum(len(person.photos) for person in people)
            people.append(wire.to_person(photos_before, strict_face=self.strict_face))
        return tuple(people)

    def to_output(self) -> OutputOptions:
        return OutputOptions(format=self.output_format, quality=self.output_quality)


class Base64Answer(BaseModel):
    """The JSON form of a success: every picture as base64 without a data prefix."""

    status: str = "Success"
    image: str | list[str] = Field(description="A string for one picture, a list for several.")
    images: list[str]
    image_format: ImageFormat
    infer_time: float = Field(description="Seconds.")
    outputs: int
    seed: int = Field(description="Of the first picture.")
    request_id: str
    output: list[str] = Field(description="Where each picture can be fetched, without a key.")
    identity_similarity: IdentitySimilarity = None


class ErrorField(BaseModel):
    field: str
    message: str


class ErrorAnswer(BaseModel):
    """Every error of every route."""

    error: str = Field(description="What happened and what to do next.")
    request_id: str
    fields: list[ErrorField] | None = Field(None, description="Only where single fields are wrong.")


def parse_request(body: bytes, *, max_prompt_chars: int) -> FluxPulidRequest:
    """The checked request of a JSON body. Costs CPU for a large one: call it off the event loop.

    Raises UnparsableBody for what is no JSON object, InvalidParameters for one with wrong fields.
    No part of the body is ever quoted in their texts.
    """
    return FluxPulidRequest.of(json_object(body, max_prompt_chars), max_prompt_chars=max_prompt_chars)


def parse_body(body: bytes, *, max_prompt_chars: int) -> ParsedBody:
    """A checked body in the words of jobs. Draws the seed if none was given. Raises as parse_request."""
    wire = parse_request(body, max_prompt_chars=max_prompt_chars)
    photos = wire.photos_by_place()
    return ParsedBody(
        request=wire.to_generation(),
        photos=tuple(photos.values()),
        output=wire.to_output(),
        places=() if list(photos) == ["main_face_image"] else tuple(photos),
    )


_SWITCH = TypeAdapter(bool)


def may_want_base64(body: bytes) -> bool:
    """Whether the word is in a body at all. Most do not have it."""
    return b'"base64"' in body or b"\\u" in body


def wants_base64(body: bytes) -> bool:
    """Does a valid body say `base64: true`? One that may is parsed again, which costs CPU."""
    asked = json.loads(body).get("base64") if may_want_base64(body) else None
    return asked is not None and _SWITCH.validate_python(asked)


def json_object(body: bytes, max_prompt_chars: int = 0) -> Mapping[str, Any]:
    """The fields of a body, whatever they are. Raises UnparsableBody."""
    parts = body.count(b",") + body.count(b"[") + body.count(b"{")
    if parts > _MAX_PARTS + 2 * max_prompt_chars:
        raise UnparsableBody("The body has too many parts; a request has about twenty fields.")
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno}, column {exc.colno}"
        raise UnparsableBody(f"The body is not valid JSON ({place}).") from None
    except RecursionError:
        raise UnparsableBody("The body is nested too deeply.") from None
    except ValueError:  # not UTF-8, NaN, or a number of thousands of digits
        raise UnparsableBody("The body is not valid JSON.") from None
    if not isinstance(data, dict):
        raise UnparsableBody("The body must be a JSON object with the parameters.")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def invalid(model: type[BaseModel], exc: ValidationError) -> InvalidParameters:
    """What is wrong with a body, in words, one problem for each field."""
    errors = exc.errors(include_input=False, include_url=False)
    return InvalidParameters([_problem(model, error) for error in errors])


def _problem(model: type[BaseModel], error: Any) -> FieldProblem:
    name, rule = rule_at(model, error["loc"])
    if error["type"] == "missing":
        return FieldProblem(name, f"{name} is required.")
    if error["type"] == EXPLAINED:
        return FieldProblem(name, f"{name} {error['msg']}")
    return FieldProblem(name, f"{name} must be {in_words(rule)}.")


def problems_with_sources(data: Mapping[str, Any]) -> list[FieldProblem]:
    """Where a body does not say in exactly one way whose face is meant. Its fields are not yet checked."""
    given = [name for name in SOURCES if data.get(name) is not None]
    if not given:
        return [FieldProblem("main_face_image", "main_face_image is required.")]
    for name in ("faces", "identity"):
        others = [other for other in given if other != name]
        if name in given and others:
            return [FieldProblem(name, f"{name} cannot be given together with {' and '.join(others)}.")]
    return []


def problems_with_number(photos: Mapping[str, str]) -> list[FieldProblem]:
    """Where a valid body has too many photos."""
    if len(photos) <= MAX_PHOTOS:
        return []
    field = "faces" if "faces" in next(iter(photos)) else "face_images"
    text = f"{field} makes it more than {MAX_PHOTOS} photos, the most that one request may have."
    return [FieldProblem(field, text)]
