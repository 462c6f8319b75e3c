"""The server's own command line, with parts of its surroundings replaced.

    python tests/staged_server.py --script=FOLDER --photo-host=NAME=127.0.0.1:PORT serve --port=0 ...

`--script` puts a scripted engine in the place of the model, `--instant` one that takes no time.
`--photo-host` gives a name a public address and answers what is dialled there from this machine: the
real fetcher runs, with another resolver and another wire. Everything else is the code that
`flux-pulid` runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from fakes import Script
from instant_engine import InstantEngine
from server.app import create_app
from server.cli.main import app as command_line
from server.jobs.face_stage import FetchPhoto
from server.security.image_fetch import FetchLimits, fetch_image

PUBLIC_ADDRESS = "93.184.215.14"  # any that the fetcher lets through; nothing is sent there


def staged_fetcher(addresses: Mapping[str, str]) -> FetchPhoto:
    """The real fetcher in a world where only the hosts in `addresses` (name → host:port) exist."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host not in addresses:
            raise OSError("no such host")
        return [PUBLIC_ADDRESS]

    return partial(
        fetch_image, limits=FetchLimits(), resolve=resolve, open_transport=lambda: LocalWire(addresses)
    )


class LocalWire(httpx.AsyncBaseTransport):
    """Takes a request to the public address to the local server that stands for its host."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._wire = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == PUBLIC_ADDRESS, "dialled what no look-up had answered"
        host, _, port = self._addresses[request.headers["host"]].partition(":")
        request.url = request.url.copy_with(scheme="http", host=host, port=int(port))
        return await self._wire.handle_async_request(request)

    async def aclose(self) -> None:
        await self._wire.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--slow-to-load", action="store_true")
    parser.add_argument("--instant", action="store_true")
    parser.add_argument("--photo-host", action="append", default=[])
    staging, rest = parser.parse_known_args()
    command_line(args=rest, prog_name="flux-pulid", obj=partial(create_app, **replacements(staging)))


def replacements(staging: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `create_app`."""
    replaced: dict[str, Any] = {}
    if staging.script is not None:
        replaced["create_engine"] = Script(
            staging.script, gated=staging.gated, slow_to_load=staging.slow_to_load
        )
    if staging.instant:
        replaced["create_engine"] = InstantEngine
    if "create_engine" in replaced:
        replaced["devices"] = ("cpu",)
    if staging.photo_host:
        replaced["fetch_photo"] = staged_fetcher(dict(pair.split("=") for pair in staging.photo_host))
    return replaced


if __name__ == "__main__":
    sys.exit(main())
