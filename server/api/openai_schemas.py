"""Wire types of OpenAI's image generation, and their translation into the words of v1.

Only the names that v1 does not have are known here, and only their form: what a size or a number of
pictures may be, v1's own model decides. Unknown names go through to it, which ignores the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.api.responses import REQUEST_BODY
from server.api.similarity import IdentitySimilarity
from server.api.v1_schemas import invalid

_SAME: Mapping[str, str] = {"n": "num_outputs", "output_compression": "output_quality"}


class OpenAIWords(BaseModel):
    """What v1 has no name for. Everything else in the body is v1's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    n: Any = Field(1, description="num_outputs in OpenAI's words.")
    output_compression: Any = Field(80, description="output_quality in OpenAI's words.")
    size: str = Field(
        "auto",
        pattern="^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="Width and height in pixels, or auto for those of v1.",
        json_schema_extra={"x-allowed": 'auto, or width and height such as "896x1152"'},
    )
    response_format: Literal["url", "b64_json"] = Field(
        "url", description="Links to the pictures, or the pictures as base64."
    )
    stream: Literal[False] = Field(
        False,
        description="Events are not served here.",
        json_schema_extra={"x-allowed": "false: events are not served here"},
    )


class Image(BaseModel):
    url: str | None = None
    b64_json: str | None = None


class ImagesAnswer(BaseModel):
    created: int = Field(description="Unix seconds.")
    data: list[Image]
    seed: int = Field(description="Of the first picture; picture i has seed + i.")
    identity_similarity: IdentitySimilarity = None


class ErrorDetails(BaseModel):
    message: str = Field(description="What happened and what to do next.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str | None = Field(description="This server's own word for it, such as no_face.")
    param: str | None = Field(description="The first wrong field, in the words of v1.")


class OpenAIError(BaseModel):
    error: ErrorDetails


def error_form(status: int, code: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
    fields = body.get("fields") or [{"field": None}]
    details = ErrorDetails(message=body["error"], type=_type_of(status), code=code, param=fields[0]["field"])
    return {"error": details.model_dump()}


def _type_of(status: int) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def translated(told: Mapping[str, Any]) -> tuple[OpenAIWords, dict[str, Any]]:
    """OpenAI's words, and the fields of a v1 body. v1's own name counts where both are given.

    Raises InvalidParameters for words of a wrong form.
    """
    given = {name: value for name, value in told.items() if value is not None}
    try:
        words = OpenAIWords.model_validate(given)
    except ValidationError as exc:
        raise invalid(OpenAIWords, exc) from None
    fields = {name: value for name, value in given.items() if name not in OpenAIWords.model_fields}
    for theirs, ours in _SAME.items():
        if theirs in given:
            fields.setdefault(ours, given[theirs])
    if words.size != "auto":
        width, _, height = words.size.partition("x")
        fields.setdefault("width", int(width))
        fields.setdefault("height", int(height))
    return words, fields


REQUEST_SCHEMA: dict[str, Any] = {
    "title": "ImagesRequest",
    "allOf": [REQUEST_BODY["content"]["application/json"]["schema"], OpenAIWords.model_json_schema()],
}
