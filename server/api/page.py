"""The pages for people: `/` makes portraits, `/docs` shows the published schema.

All of it comes from this server under a strict policy, and works without any other. The page at `/`
is the files in `server/web`, as they were when the server started, so that an upgrade never mixes
two versions; what it shows it asks the routes for, like any client. `/docs` is Swagger UI's own, out of
the package swagger-ui-bundle. Fixed lists of assets are served, whatever else lies beside.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

from server.api.deps import SettingsDep

router = APIRouter(include_in_schema=False)

_WEB = Path(str(files("server"))) / "web"
_DOCS_ASSETS = {
    "swagger-ui.css": (swagger_ui_path / "swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": (swagger_ui_path / "swagger-ui-bundle.js", "text/javascript"),
    "docs.js": (_WEB / "docs.js", "text/javascript"),
}
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PAGE = (_WEB / "index.html").read_text(encoding="utf-8")
_PAGE_ASSETS = {
    path.name: path.read_bytes()
    for path in _WEB.iterdir()
    if path.suffix in _MEDIA_TYPES and path.name != "docs.js"
}
# data: the icons in Swagger UI's style sheet, and previews. blob: pictures that the pages hold themselves.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page builds its elements one by one; with this the browser refuses markup made of text.
_NO_MARKUP_FROM_TEXT = "require-trusted-types-for 'script'; trusted-types 'none'"


@router.get("/")
async def page(request: Request, settings: SettingsDep) -> Response:
    text = _PAGE.replace("{max_body_bytes}", str(int(settings.max_body_mb * 1_000_000)))
    policy = f"{CONTENT_SECURITY_POLICY}; {_NO_MARKUP_FROM_TEXT}"
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
    return _revalidated(request, text.encode(), "text/html", headers)


@router.get("/page/{asset}")
async def page_asset(request: Request, asset: str) -> Response:
    if asset not in _PAGE_ASSETS:
        raise HTTPException(404)
    return _revalidated(request, _PAGE_ASSETS[asset], _MEDIA_TYPES[Path(asset).suffix], {})


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
    if asset not in _DOCS_ASSETS:
        raise HTTPException(404)
    path, media_type = _DOCS_ASSETS[asset]
    return FileResponse(path, media_type=media_type, headers={"cache-control": "public, max-age=3600"})


def _revalidated(request: Request, body: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """The file, or 304 where the browser has it. It asks each time: a server may be a newer one now."""
    etag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**headers, "etag": etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
