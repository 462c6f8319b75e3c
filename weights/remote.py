"""What a server says of a file before it is fetched, and its bytes from any place on.

The only file that knows huggingface_hub: its addresses and mirror (HF_ENDPOINT), its tokens and its
session (proxies, certificates) serve for both kinds of sources. Its own download is not used: 2.4
deletes what it has when a connection breaks (docs/decisions/0008-weights-manifest.md). Turns every
refusal into a text that says what to do next. Writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from weights.errors import AccessDenied, FetchFailed, TryLater
from weights.manifest import HubFile, ReleaseFile

constants.HF_HUB_DISABLE_TELEMETRY = True  # else each process begins by asking the Hub for one file more

TIMEOUT_S = 20.0  # without a byte
_TOKENS = "https://huggingface.co/settings/tokens"
_SHA256 = re.compile(r"[0-9a-f]{64}")

# The base of all errors of the HTTP library below: httpx under huggingface_hub 1, httpx2 under 2.
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


class Interrupted(TryLater):
    """It may go on at the next try."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as its server offers it."""

    source: HubFile | ReleaseFile
    url: str
    headers: Mapping[str, str]
    size: int | None  # bytes
    etag: str  # of this content; may be empty

    @property
    def sha256(self) -> str | None:
        """The Hub names its large files by their hash."""
        return self.etag if isinstance(self.source, HubFile) and _SHA256.fullmatch(self.etag) else None


def ask(source: HubFile | ReleaseFile) -> Remote:
    """Size and identity of a file, without its bytes. Raises AccessDenied, FetchFailed or Interrupted."""
    with _plain_errors(source):
        return _ask_hub(source) if isinstance(source, HubFile) else _ask_release(source)


@contextmanager
def opened(remote: Remote, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The bytes of a file, and where they begin: at `start`, or at 0 from a server that sends only wholes.

    Raises as `ask` does, also while they are read.
    """
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with (
        _plain_errors(remote.source),
        _get(remote.url, headers) as response,
    ):
        begins = start if response.status_code == 206 else 0
        if begins and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise Interrupted(f"{remote.source.address} was asked for a part and sent another one.")
        yield begins, response.iter_raw()


def _endpoint() -> str | None:
    """huggingface_hub reads it once, when it is imported; given to it, it also counts later."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _ask_hub(source: HubFile) -> Remote:
    endpoint = _endpoint()
    url = hf_hub_url(source.repo, source.path, revision=source.revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint)
    if metadata.commit_hash is None:
        raise FetchFailed(
            f"{_host(url)} does not answer as the Hub does: something stands between, or HF_ENDPOINT names "
            "no mirror of the Hub. Open the address in a browser, and correct HF_ENDPOINT or the proxy."
        )
    return Remote(source, url, build_hf_headers(), metadata.size, metadata.etag or "")


def _ask_release(source: ReleaseFile) -> Remote:
    """By a request for one byte: a release's signed address may be good for GET alone."""
    headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    with _get(source.url, headers) as response:
        is_part = response.status_code == 206
        length = response.headers.get("content-range" if is_part else "content-length", "")
        etag = response.headers.get("etag", "")
    total = length.rpartition("/")[2]
    return Remote(source, source.url, {}, int(total) if total.isdecimal() else None, etag)


@contextmanager
def _get(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """A response whose body is still to come. A redirect to another host goes without the token."""
    with get_session().stream(
        "GET", url, headers=dict(headers), timeout=TIMEOUT_S, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        yield response


@contextmanager
def _plain_errors(source: HubFile | ReleaseFile) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as exc:
        raise _refusal(source, exc) from exc
    except OfflineModeIsEnabled as exc:
        raise FetchFailed(
            f"{source.address} is not here yet, and HF_HUB_OFFLINE forbids to fetch it. Unset it, or bring "
            "files from another machine with `flux-pulid weights import DIR`."
        ) from exc
    except _TRANSPORT_ERROR as exc:
        raise Interrupted(
            f"{_host(source.address)} cannot be reached, or the connection broke ({type(exc).__name__}: "
            f"{exc}). Check the network and the proxy (HTTPS_PROXY), or name a mirror of the Hub in "
            "HF_ENDPOINT; then run the same command again: it goes on where it stopped. Files from another "
            "machine come in with `flux-pulid weights import DIR`."
        ) from exc


def _host(address: str) -> str:
    """The host that was really asked."""
    host = urlsplit(address).netloc
    mirror = _endpoint()
    return urlsplit(mirror).netloc if mirror and host == "huggingface.co" else host


def _refusal(source: HubFile | ReleaseFile, exc: HfHubHTTPError) -> FetchFailed:
    status = exc.response.status_code
    if status == 429 or status >= 500:
        return Interrupted(
            f"{_host(source.address)} cannot answer now (HTTP {status}). Run the same command again in some "
            "minutes: it goes on where it stopped."
        )
    if isinstance(source, HubFile) and status in (401, 403):
        return AccessDenied(_denied(source, status, is_gated=isinstance(exc, GatedRepoError)))
    where = f"{source.repo} at {source.revision}" if isinstance(source, HubFile) else source.url
    what = source.path if isinstance(source, HubFile) else "The file"
    return FetchFailed(
        f"{what} is not at {where} (HTTP {status} from {_host(source.address)}). If HF_ENDPOINT or a proxy "
        "names a mirror, it may lack the file: try without it. Otherwise the publisher has taken it away: "
        "`flux-pulid weights import DIR` takes it from a folder that still has it."
    )


def _denied(source: HubFile, status: int, *, is_gated: bool) -> str:
    renew = f"make a token at {_TOKENS} and set HF_TOKEN to it, or run `hf auth login`"
    if is_gated or source.gated:
        if get_token() is None:
            return (
                f"{source.repo} is gated: open {source.page} in a browser, log in, and accept its licence; "
                f"then {renew}, and run this command again."
            )
        return (
            f"The token has no access to {source.repo} (HTTP {status}). Open {source.page} with the "
            "account of the token and accept the licence; a fine-grained token also needs the permission to "
            f"read gated repositories. If the token is old or mistyped, {renew}."
        )
    return (
        f"The Hub does not give {source.path} of {source.repo} (HTTP {status}): the repository is gone or "
        f"private, or the token is not valid. Look at {source.page}; if it is there, unset HF_TOKEN, or "
        f"{renew}."
    )
