"""Which web pages may call the server, under which names, and how callers see its address.

With API keys a page can do no more than its key allows, so any origin may call (or those listed).
Without keys a browser on this machine would carry any web page's calls inside, so calls are
answered only from the server's own pages and under a local name: a foreign name that leads here is
how DNS rebinding passes for the same origin. A probe of /health or /ready may use any name.

Forwarded headers count only from trusted proxies. Knows no route and no key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response
from server.settings import Settings, is_loopback

EXPOSED_HEADERS = (
    "link",
    "retry-after",
    "x-cost",
    "x-flux-pulid-notice",
    "x-generation-time",
    "x-identity-similarity",
    "x-output-metadata",
    "x-rate-limit-remaining",
    "x-rate-limit-reset-at-utc",
    "x-remaining-credits",
    "x-request-id",
    "x-seed-value",
)

_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PROBES = frozenset({"/health", "/ready"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({"same-origin", "none"})  # none: a person typed the address

_WRONG_NAME = (
    "This server has no API keys, so it answers only under a local name. Call it as 127.0.0.1 or "
    "localhost, or set public_url to the name it is to have."
)
_WRONG_ORIGIN = (
    "This server has no API keys, so other web pages may not call it. Set API keys, or list the page's "
    "origin in cors_origins."
)
_NOT_LISTED = "Web pages of this origin may not call this server. Its operator lists them in cors_origins."


@dataclass(frozen=True, slots=True)
class Address:
    """Where the caller believes the server to be."""

    scheme: str
    host: str  # with its port, as in a Host header; "" when it is no host at all

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"


def address_of(scope: Scope, settings: Settings) -> Address:
    """From the request line and the Host header, or from what a trusted proxy says they were."""
    headers = Headers(scope=scope)
    scheme, host = scope["scheme"], headers.get("host", "")
    if _is_trusted_proxy(scope, settings):
        # The last of a list is the one the proxy itself has written.
        forwarded = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        scheme = forwarded if forwarded in _DEFAULT_PORTS else scheme
        forwarded = headers.get("x-forwarded-host", "").rpartition(",")[2].strip()
        host = forwarded if _is_host(forwarded) else host
    return Address(scheme, host.lower() if _is_host(host) else "")


def _is_host(text: str) -> bool:
    """A name or an address, perhaps with a port, that urlsplit can take apart."""
    try:
        urlsplit(f"http://{text}").port  # noqa: B018  # looked at because that checks it
    except ValueError:
        return False
    return _HOST.fullmatch(text) is not None


def _is_trusted_proxy(scope: Scope, settings: Settings) -> bool:
    if not settings.trusted_proxies or not scope.get("client"):
        return False
    try:
        peer = ip_address(scope["client"][0])
    except ValueError:  # a Unix socket has no address
        return False
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:
        peer = peer.ipv4_mapped
    return any(peer in network for network in settings.trusted_proxies)


def public_base(request: Request) -> str:
    """The base of absolute links for this caller, without a slash at its end."""
    settings: Settings = request.app.state.settings
    if settings.public_url is not None:
        return settings.public_url
    address = address_of(request.scope, settings)
    if address.host:
        return address.url
    host, port = request.scope["server"]
    return f"{address.scheme}://[{host}]:{port}" if ":" in host else f"{address.scheme}://{host}:{port}"


def origin_of(url: str) -> str:
    """As browsers write it: scheme, name in lower case, and the port unless it is the usual one."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    usual = parts.port in (None, _DEFAULT_PORTS.get(parts.scheme))
    return f"{parts.scheme}://{name}" if usual else f"{parts.scheme}://{name}:{parts.port}"


class OriginRules:
    """Pure ASGI, between the request context and the routes."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings
        self._listed = frozenset(origin_of(one) for one in settings.cors_origins if one != "*")
        self._any_origin = settings.needs_key and settings.cors_origins in ((), ("*",))
        self._public = origin_of(settings.public_url) if settings.public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        address = address_of(scope, self._settings)
        marks = self._cors_headers(headers.get("origin"))
        if (refusal := self._refusal(scope, headers, address)) is not None:
            await error_response(Request(scope), 403, refusal)(scope, receive, send)
        elif _is_preflight(scope, headers):
            await self._preflight(scope, headers, marks)(scope, receive, send)
        else:
            await self.app(scope, receive, _Marked(send, marks) if marks else send)

    def _refusal(self, scope: Scope, headers: Headers, address: Address) -> str | None:
        """Why a server without keys does not listen to this request."""
        if self._settings.needs_key:
            return None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in _PROBES and not self._is_own_name(address):
            return _WRONG_NAME
        origins = headers.getlist("origin")
        if not all(self._may_call(origin, address) for origin in origins):
            return _WRONG_ORIGIN
        # A browser names the origin of every such call; this is for one that did not.
        foreign = headers.get("sec-fetch-site", "none") not in _OWN_SITE
        if not origins and foreign and scope["method"] not in _READING:
            return _WRONG_ORIGIN
        return None

    def _is_own_name(self, address: Address) -> bool:
        name = urlsplit(address.url).hostname if address.host else None
        if name is None:
            return False
        return is_loopback(name) or (self._public is not None and name == urlsplit(self._public).hostname)

    def _may_call(self, origin: str, address: Address) -> bool:
        own = (self._public, origin_of(address.url) if address.host else None)
        return origin in self._listed or origin in own

    def _cors_headers(self, origin: str | None) -> Mapping[str, str]:
        """What lets the page of this origin read the answer; nothing for other pages."""
        exposed = {"access-control-expose-headers": ", ".join(EXPOSED_HEADERS)}
        if self._any_origin:
            return {"access-control-allow-origin": "*", **exposed} if origin else {}
        if origin in self._listed:
            return {"access-control-allow-origin": origin, "vary": "Origin", **exposed}
        return {"vary": "Origin"} if self._listed else {}

    def _preflight(self, scope: Scope, headers: Headers, marks: Mapping[str, str]) -> Response:
        """A browser asks before it sends a page's call; answered without a key, as it has none."""
        if "access-control-allow-origin" not in marks:
            return error_response(Request(scope), 403, _NOT_LISTED)
        return Response(
            status_code=204,
            headers={
                **marks,
                "access-control-allow-methods": "GET, HEAD, POST, DELETE",
                # Named one by one: a wildcard would leave out Authorization.
                "access-control-allow-headers": headers.get("access-control-request-headers", ""),
                "access-control-max-age": "600",  # seconds
                "vary": "Origin, Access-Control-Request-Headers",
            },
        )


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


class _Marked:
    """`send`, with headers on the answer."""

    def __init__(self, send: Send, marks: Mapping[str, str]) -> None:
        self._send = send
        self._marks = marks

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update({name: value for name, value in self._marks.items() if name != "vary"})
            if "vary" in self._marks:
                headers.add_vary_header(self._marks["vary"])
        await self._send(message)
