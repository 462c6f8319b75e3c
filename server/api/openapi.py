"""The published schema: what FastAPI derives from the routes, made to say what the routes really do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_SCHEMES = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the app."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        description="Portraits of the person in a photo. Errors of every route: `ErrorAnswer`.",
        routes=app.routes,
    )
    for operations in schema["paths"].values():
        for operation in operations.values():
            _forget_validation(operation)
            if "401" in operation["responses"]:
                operation["security"] = [{name: []} for name in _SCHEMES]
    components = schema["components"]
    components["securitySchemes"] = _SCHEMES
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    return schema


def _forget_validation(operation: dict[str, Any]) -> None:
    """FastAPI announces its own 422 wherever there is a parameter; no parameter here can fail there."""
    answer = operation["responses"].get("422", {})
    if "HTTPValidationError" in str(answer):
        del operation["responses"]["422"]
