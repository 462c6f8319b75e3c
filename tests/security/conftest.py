"""A small app behind the real walls: the request context, the origin rules, keys and budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from server.api.context import FaultBarrier, RequestContext
from server.errors import install_error_handlers
from server.metrics import Metrics
from server.security.auth import keys_in_force, require_key
from server.security.origin import OriginRules, public_base
from server.security.rate_limit import Budget, require_budget
from server.settings import Settings


class Walled:
    """The app, and a caller of it that comes from `peer` and knows it as `base_url`."""

    def __init__(self, settings: Settings, *, unfinished_of: Callable[[str], int], clock) -> None:
        self.app = app = FastAPI(openapi_url=None)
        app.state.settings = settings
        app.state.keys = keys_in_force(settings)
        app.state.budget = Budget(
            per_minute=settings.rate_limit,
            concurrency=settings.concurrency_per_key,
            unfinished_of=unfinished_of,
            clock=clock,
        )
        app.add_middleware(FaultBarrier)
        app.add_middleware(OriginRules, settings=settings)
        app.add_middleware(RequestContext, metrics=Metrics())
        install_error_handlers(app)
        add_routes(app)

    def call(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        *,
        peer: str = "127.0.0.1",
        base_url: str = "http://127.0.0.1:8000",
    ) -> httpx.Response:
        async def answer():
            transport = httpx.ASGITransport(self.app, client=(peer, 50_000))
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(answer())

    def get(self, path: str, headers=None, **place) -> httpx.Response:
        return self.call("GET", path, headers, **place)

    def post(self, path: str, headers=None, **place) -> httpx.Response:
        return self.call("POST", path, headers, **place)


def add_routes(app: FastAPI) -> None:
    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.get("/whoami")
    async def whoami(request: Request, key: Annotated[str, Depends(require_key)]):
        return {"key": key, "noted": request.state.key}

    @app.post("/paint", dependencies=[Depends(require_budget)])
    async def paint(request: Request):
        return JSONResponse({"status": "ok"}, headers=request.state.rate_limit_headers)

    @app.get("/base")
    async def base(request: Request):
        return {"base": public_base(request)}

    @app.get("/varied")
    async def varied():
        return JSONResponse({}, headers={"vary": "Accept"})

    @app.get("/broken")
    async def broken():
        raise RuntimeError("zebra-in-a-tutu")


@pytest.fixture(scope="session")
def walled():
    """`walled(setting=value, ...)` is a small app with those settings."""

    def build(*, unfinished_of=lambda key: 0, clock=lambda: 0.0, **settings) -> Walled:
        return Walled(Settings(**settings), unfinished_of=unfinished_of, clock=clock)

    return build


@pytest.fixture(scope="session")
def assert_refused():
    """The one form of all errors."""

    def check(answer: httpx.Response, status: int, words: str = "") -> None:
        assert answer.status_code == status, answer.text
        body = answer.json()
        assert set(body) == {"error", "request_id"}
        assert body["request_id"] == answer.headers["x-request-id"]
        assert words in body["error"]

    return check
