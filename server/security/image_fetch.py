"""URL → bytes, from public addresses only. What decides is the address that is dialled.

Each hop of a fetch: look the host up once, require every answer to be public, connect to one of
exactly these addresses (Host header and TLS name stay the host's), and judge the next hop anew.
So neither an odd spelling, a redirect nor a changing DNS answer leads inside. Time and size are
limited over the whole fetch. Every refusal and every failure has the same text: it tells nothing
about what was found. The resolver and the connection are handed in, so tests need no network.

Deployments should also forbid outgoing traffic to private ranges; this is the first wall, not the
only one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

from pulid.errors import ImageRejected

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port → every address of it
OpenTransport = Callable[[], httpx.AsyncBaseTransport]  # a fresh one for each connection

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT_S = 3.0
_MAX_LOOKUPS = 16  # at once, those that nobody waits for any more included: no look-up can be stopped

# Beyond what `ipaddress` calls private. Its `is_global` is true for most of these.
_REFUSED_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("168.63.129.16/32"),  # the virtual host of Azure machines
)
# IPv6 is judged the other way round: only global unicast is public. That leaves out ::/96 and
# ::ffff:0:0/96 (IPv4 inside), 64:ff9b::/96 and 64:ff9b:1::/48 (NAT64), fc00::/7, fe80::/10,
# fec0::/10 and multicast.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_REFUSED_V6 = (
    IPv6Network("2001::/23"),  # Teredo, ORCHID, benchmarking
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4: IPv4 inside
    IPv6Network("3fff::/20"),  # documentation
)
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # third quarter of an address with IPv4 inside


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    timeout_s: float = 15.0  # look-up, connections, redirects and body together
    max_mb: float = 20.0
    allow: frozenset[str] = frozenset()  # host:port that may be private, exactly as in the URL


@dataclass(frozen=True, slots=True)
class _Target:
    """One hop, judged: where to connect, and what to ask for there."""

    url: httpx.URL
    addresses: tuple[str, ...]


class _Refused(Exception):
    """Why, for developers. Callers get the one text for all."""


def public_fetcher(limits: FetchLimits) -> Callable[[str], Awaitable[bytes]]:
    """`fetch_image` with the system's resolver and real connections."""
    tls = httpx.create_ssl_context(trust_env=False)
    return partial(
        fetch_image,
        limits=limits,
        resolve=system_resolver(),
        # No connection is ever reused: it belongs to the host name it was opened for.
        open_transport=lambda: httpx.AsyncHTTPTransport(verify=tls, trust_env=False),
    )


def system_resolver() -> Resolver:
    """getaddrinfo in threads of its own. Raises OSError for a name without an address."""
    threads = ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="look-up")

    async def resolve(host: str, port: int) -> Sequence[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        answers = await asyncio.get_running_loop().run_in_executor(threads, look_up)
        return [str(address[0]) for *_, address in answers]

    return resolve


async def fetch_image(
    url: str, *, limits: FetchLimits, resolve: Resolver, open_transport: OpenTransport
) -> bytes:
    """Download a photo from a public address, never from ours. Raises ImageRejected."""
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _follow(url, limits, resolve, open_transport)
    # OSError: look-ups, sockets, the time limit. ValueError: names and ports no one can dial.
    except (_Refused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as exc:
        raise ImageRejected(
            "The photo at main_face_image could not be fetched. Use a public http(s) address of an "
            f"image up to {limits.max_mb:g} MB, or send the photo as base64."
        ) from exc


async def _follow(start: str, limits: FetchLimits, resolve: Resolver, open_transport: OpenTransport) -> bytes:
    url = httpx.URL(start)
    for _ in range(_MAX_REDIRECTS + 1):
        target = await _judge(url, limits, resolve)
        async with _open(target, open_transport) as response:
            if response.status_code not in _REDIRECTS:
                return await _read(response, int(limits.max_mb * 1_000_000))
            url = url.join(response.headers.get("location", ""))
    raise _Refused("too many redirects")


async def _judge(url: httpx.URL, limits: FetchLimits, resolve: Resolver) -> _Target:
    """The addresses a URL may be fetched from. Raises _Refused unless all of them are fit."""
    if url.scheme not in _PORTS or not url.host or url.userinfo:
        raise _Refused("not a plain http(s) URL")
    host = url.raw_host.decode("ascii").lower()
    port = _PORTS[url.scheme] if url.port is None else url.port
    allowed = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    addresses = tuple(dict.fromkeys(await resolve(host, port)))
    if allowed not in limits.allow:
        if port not in _PORTS.values():
            raise _Refused("port")
        if not all(map(is_public, addresses)):
            raise _Refused("address")
    if not addresses:
        raise _Refused("no address")
    return _Target(url, addresses)


def is_public(address: str) -> bool:
    """Is this the address of some host on the internet, and of none that is near to us?"""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, IPv4Address):
        return _is_public_v4(ip)
    return _is_public_v6(ip)


def _is_public_v4(ip: IPv4Address) -> bool:
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _REFUSED_V4)


def _is_public_v6(ip: IPv6Address) -> bool:
    if ip not in _GLOBAL_UNICAST or not ip.is_global or (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return not any(ip in network for network in _REFUSED_V6)


@asynccontextmanager
async def _open(target: _Target, open_transport: OpenTransport) -> AsyncIterator[httpx.Response]:
    """The answer of the first address that takes the connection, its body still unread."""
    for number, address in enumerate(target.addresses, start=1):
        async with httpx.AsyncClient(
            transport=open_transport(),
            trust_env=False,  # no proxy and no .netrc of the environment
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
        ) as client:
            try:
                response = await client.send(_request(target.url, address), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(target.addresses):
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return


def _request(url: httpx.URL, address: str) -> httpx.Request:
    """A request to the address, for the host. Built anew: nothing of the caller travels along."""
    return httpx.Request(
        "GET",
        url.copy_with(host=address, fragment=None),
        headers={
            "host": url.netloc.decode("ascii"),
            "user-agent": "flux-pulid-server",
            "accept": "image/*",
            "accept-encoding": "identity",
            "connection": "close",
        },
        extensions={"sni_hostname": url.raw_host.decode("ascii")},
    )


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body of a success, counted while it comes. Raises _Refused."""
    if response.status_code != httpx.codes.OK:
        raise _Refused("status")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Refused("compressed although identity was asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise _Refused("size")
    return bytes(body)
