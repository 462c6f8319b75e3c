"""What settings and wire schemas share about a field: numbers that are numbers, and ranges in words.

The words come from the JSON schema pydantic derives from the field, so a range is written once,
in the model. A field whose rule no schema can say carries its words itself:
`json_schema_extra={"x-allowed": "..."}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def clean_unicode(value: str) -> str:
    """The text, if it is one. For validators of a model."""
    if "\0" in value:
        raise explained("must not contain the NUL character.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise explained("must be valid Unicode; it has half of a surrogate pair.") from None
    return value


def rule_of(model: type[BaseModel], name: str) -> Mapping[str, Any]:
    """The JSON schema of one field, without the null of an optional one."""
    return _without_null(schema_of(model)["properties"][name])


def rule_at(model: type[BaseModel], path: Sequence[str | int]) -> tuple[str, Mapping[str, Any]]:
    """The name and the rule of what lies at a path, for example "faces[1].box"."""
    name, rule = "", schema_of(model)
    for step in path:
        within = rule.get("items") if isinstance(step, int) else rule.get("properties", {}).get(step)
        if within is None:
            break
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
        rule = _without_null(within)
    return name.removeprefix("."), rule


def _without_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
    return {**schema, **branches[0]} if branches else schema


def allowed(model: type[BaseModel], name: str) -> str:
    """For example "a whole number from 256 to 1536" or "one of png, jpg, webp"."""
    return in_words(rule_of(model, name))


def in_words(rule: Mapping[str, Any]) -> str:
    """What a rule allows."""
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
def schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    """The JSON schema of what a model takes, each definition in the places that refer to it."""
    schema = model.model_json_schema()
    inlined: Mapping[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return inlined


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(within, definitions) for name, within in node.items()}
