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
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pulid.engine import DEFAULT_NEGATIVE_PROMPT, FaceChoice, FaceOrder, GenerationRequest
from server.errors import FieldProblem, InvalidParameters, UnparsableBody
from server.fields import EXPLAINED, NotBoolean, Number, Whole, allowed, explained
from server.jobs.files import ImageFormat, OutputOptions
from server.jobs.live import ParsedBody

MAX_SEED = 2**63 - 1
_MAX_PARTS = 100_000  # brackets and commas beside the prompts; megabytes of them become gigabytes of lists

WireFormat = Annotated[ImageFormat, BeforeValidator(lambda value: "jpg" if value == "jpeg" else value)]


class FluxPulidRequest(BaseModel):
    """The parameters of one flux-pulid call. Unknown fields are ignored; null means "not given"."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    main_face_image: str = Field(
        min_length=1,
        description="Photo with the face to keep: an http(s) URL, a data URI or bare base64.",
        json_schema_extra={"x-allowed": "an http(s) URL, a data URI or the base64 text of a photo"},
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

    @field_validator("main_face_image", "prompt", "negative_prompt")
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
        try:
            return cls.model_validate(data, context={"max_prompt_chars": max_prompt_chars})
        except ValidationError as exc:
            raise invalid(cls, exc) from None

    def to_generation(self) -> GenerationRequest:
        """In the engine's words, still without the photo. Draws the seed if none was given."""
        return GenerationRequest(
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
            face=FaceChoice(index=self.face_index, order=self.face_order, strict=self.strict_face),
            id_end_step=self.id_end_step,
        )

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
    return ParsedBody(request=wire.to_generation(), photo=wire.main_face_image, output=wire.to_output())


def wants_base64(body: bytes) -> bool:
    """Does a valid body say `base64: true`? Most bodies do not have the word and are not parsed again."""
    may_have_the_word = b'"base64"' in body or b"\\u" in body
    return may_have_the_word and FluxPulidRequest.model_validate(json.loads(body)).base64


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


def clean_unicode(value: str) -> str:
    """The text, if it is one. For validators of a model."""
    if "\0" in value:
        raise explained("must not contain the NUL character.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise explained("must be valid Unicode; it has half of a surrogate pair.") from None
    return value


def invalid(model: type[BaseModel], exc: ValidationError) -> InvalidParameters:
    """What is wrong with a body, in words, one problem for each field."""
    errors = exc.errors(include_input=False, include_url=False)
    return InvalidParameters([_problem(model, error) for error in errors])


def _problem(model: type[BaseModel], error: Any) -> FieldProblem:
    name, kind = str(error["loc"][0]), error["type"]
    if kind == "missing":
        return FieldProblem(name, f"{name} is required.")
    if kind == EXPLAINED:
        return FieldProblem(name, f"{name} {error['msg']}")
    return FieldProblem(name, f"{name} must be {allowed(model, name)}.")
