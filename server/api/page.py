"""/docs: the published schema for people. All of it comes from this server, under a strict policy.

The assets are Swagger UI's own, out of the package swagger-ui-bundle; a fixed list of them is
served, whatever else lies beside.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

router = APIRouter(include_in_schema=False)

_WEB = Path(str(files("server"))) / "web"
_ASSETS = {
    "swagger-ui.css": (swagger_ui_path / "swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": (swagger_ui_path / "swagger-ui-bundle.js", "text/javascript"),
    "docs.js": (_WEB / "docs.js", "text/javascript"),
}
# data: the icons in Swagger UI's style sheet. blob: pictures that were made from its page.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/docs")
async def docs() -> Response:
    return FileResponse(
        _WEB / "docs.html",
        media_type="text/html",
        headers={
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


@router.get("/docs/{asset}")
async def docs_asset(asset: str) -> Response:
    if asset not in _ASSETS:
        raise HTTPException(404)
    path, media_type = _ASSETS[asset]
    return FileResponse(path, media_type=media_type, headers={"cache-control": "public, max-age=3600"})
