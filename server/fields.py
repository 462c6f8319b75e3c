"""What settings and wire schemas share about a field: numbers that are numbers, and ranges in words.

The words come from the JSON schema pydantic derives from the field, so a range is written once,
in the model. A field whose rule no schema can say carries its words itself:
`json_schema_extra={"x-allowed": "..."}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError

EXPLAINED = "explained"  # the type of a validation error whose text already says what is allowed

_NOUNS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def _refuse_booleans(value: object) -> object:
    # To Python, and so to pydantic, True is the number 1. To a caller it is a mistake.
    if isinstance(value, bool):
        raise PydanticCustomError("boolean_for_number", "a boolean is not a number")
    return value


NotBoolean = BeforeValidator(_refuse_booleans)
Whole = Annotated[int, NotBoolean]  # also takes "20" and 20.0
Number = Annotated[float, NotBoolean]  # also takes "1.05"


def explained(text: str) -> PydanticCustomError:
    """A validation error that is shown as it is. Braces in `text` are taken literally."""
    return PydanticCustomError(EXPLAINED, "{text}", {"text": text})


def rule_of(model: type[BaseModel], name: str) -> Mapping[str, Any]:
    """The JSON schema of one field, without the null of an optional one."""
    schema = _properties(model)[name]
    branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
    return {**schema, **branches[0]} if branches else schema


def allowed(model: type[BaseModel], name: str) -> str:
    """For example "a whole number from 256 to 1536" or "one of png, jpg, webp"."""
    rule = rule_of(model, name)
    if "x-allowed" in rule:
        return str(rule["x-allowed"])
    if "const" in rule:
        return f'"{rule["const"]}"'
    if "enum" in rule:
        return f"one of {', '.join(rule['enum'])}"
    return _NOUNS[rule["type"]] + _bounds(rule)


def _bounds(rule: Mapping[str, Any]) -> str:
    low, above, high = (rule.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        return f" above {_plain(above)} and at most {_plain(high)}"
    if high is None:
        return "" if low is None else f" of at least {_plain(low)}"
    return f" from {_plain(low)} to {_plain(high)}"


def _plain(number: float | None) -> str:
    """256.0 as 256, and no 1e+06."""
    return str(int(number)) if number is not None and number == int(number) else str(number)


@cache
def _properties(model: type[BaseModel]) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = model.model_json_schema()["properties"]
    return properties
