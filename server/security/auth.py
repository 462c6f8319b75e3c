"""API keys: where they come from, whose a presented one is, and the dependency that asks for one.

Kept are names and SHA-256 digests, never keys. A presented key is hashed and compared with every
digest in constant time, so neither a prefix nor the position of a key can be measured. The file of
keys is read again on SIGHUP; `flux-pulid keys` writes it. Knows no route and no limit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from fastapi import Request
from starlette.datastructures import Headers

from pulid.errors import PulidError
from server.logs import get_logger
from server.settings import KEY_NAME, Settings, SettingsError, is_loopback

log = get_logger("auth")

_SCHEMES = ("bearer", "token")  # of the Authorization header; the second is that of old Replicate clients
_LINE = re.compile(rf"({KEY_NAME})\s+([0-9a-f]{{64}})")


class Unauthorized(PulidError):
    """No API key came along, or one that is not known here."""

    code = "unauthorized"
    headers: Mapping[str, str] = {"www-authenticate": 'Bearer realm="flux-pulid"'}


@dataclass(frozen=True, slots=True)
class ApiKey:
    name: str
    digest: bytes  # SHA-256 of the key


def digest_of(key: str) -> bytes:
    # surrogatepass: header text is arbitrary, and must be refused, not fail to be encoded.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class ApiKeys:
    """The keys in force. Raises SettingsError when they cannot be read or two of them are alike."""

    def __init__(self, given: Iterable[str] = (), *, file: Path | None = None) -> None:
        self._given = tuple(map(_given_key, given))
        self._file = file
        self._keys = self._load()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(key.name for key in self._keys)

    def identify(self, presented: str) -> str | None:
        """The name of the key, or None. Takes the same time whichever key it is, if any."""
        digest = digest_of(presented)
        found = None
        for key in self._keys:
            if compare_digest(key.digest, digest):
                found = key.name
        return found

    def reload(self) -> None:
        """Read the file again. If it is broken, the keys stay as they are and the log says why."""
        try:
            self._keys = self._load()
        except SettingsError as exc:
            log.error("API keys not reloaded", reason=str(exc))
        else:
            log.info("API keys reloaded", keys=len(self._keys))

    def _load(self) -> tuple[ApiKey, ...]:
        keys = (*self._given, *(read_keys_file(self._file) if self._file else ()))
        by_name: dict[str, ApiKey] = {}
        by_digest: dict[bytes, ApiKey] = {}
        for key in keys:
            if key.name in by_name:
                raise SettingsError(f"Two API keys have the name {key.name}. Rename or remove one of them.")
            if key.digest in by_digest:
                other = by_digest[key.digest].name
                raise SettingsError(f"The API keys {other} and {key.name} are the same. Remove one of them.")
            by_name[key.name] = by_digest[key.digest] = key
        return keys


def _given_key(text: str) -> ApiKey:
    """From `name:key` or a bare key, which is named after its hash."""
    name, colon, key = text.partition(":")
    if colon:
        return ApiKey(name, digest_of(key))
    digest = digest_of(text)
    return ApiKey(f"key-{digest.hex()[:8]}", digest)


def read_keys_file(path: Path) -> tuple[ApiKey, ...]:
    """Lines of `name sha256hex`; empty ones and those that begin with # count for nothing.

    Raises SettingsError, which names the line but shows nothing of it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as exc:
        raise SettingsError(
            f"The file of API keys {path} does not exist. `flux-pulid keys add NAME --file {path}` makes it."
        ) from exc
    except OSError as exc:
        raise SettingsError(f"The file of API keys {path} cannot be read: {exc.strerror}.") from exc
    except ValueError as exc:
        raise SettingsError(f"The file of API keys {path} is not UTF-8 text.") from exc
    keys = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if (match := _LINE.fullmatch(line)) is None:
            raise SettingsError(
                f"Line {number} of the file of API keys {path} is not a name and the SHA-256 of a key in "
                "hex. `flux-pulid keys add NAME` writes such lines."
            )
        keys.append(ApiKey(match[1], bytes.fromhex(match[2])))
    return tuple(keys)


def keys_in_force(settings: Settings) -> ApiKeys | None:
    """The keys a call must have one of; None where none is asked for. Raises SettingsError."""
    if not settings.needs_key:
        return None
    return ApiKeys((key.get_secret_value() for key in settings.api_keys), file=settings.api_keys_file)


def cautions(settings: Settings, keys: ApiKeys | None) -> tuple[str, ...]:
    """What the operator should hear at start about who may call."""
    found = []
    if keys is None and not is_loopback(settings.host):
        found.append(
            f"auth is none and the host is {settings.host}: whoever reaches the port may use the GPU. "
            "Web pages and other host names than this machine's own and public_url's are refused."
        )
    if keys is None and (settings.api_keys or settings.api_keys_file):
        found.append("auth is none: the API keys that are set are not asked for.")
    if keys is not None and not keys.names:
        found.append("The file of API keys holds none: every call that needs one is refused.")
    return tuple(found)


async def require_key(request: Request) -> str:
    """The name of the caller's API key; "" where no keys are asked for. Raises Unauthorized."""
    keys: ApiKeys | None = request.app.state.keys
    name = "" if keys is None else _name_of_caller(keys, request.headers)
    request.state.key = name
    return name


def _name_of_caller(keys: ApiKeys, headers: Headers) -> str:
    presented = presented_key(headers)
    if presented is None:
        raise Unauthorized("No API key. Send yours in the header x-api-key, or as Authorization: Bearer.")
    if (name := keys.identify(presented)) is None:
        raise Unauthorized("This API key is not valid here. Check it, or ask the operator for one.")
    return name


def presented_key(headers: Headers) -> str | None:
    """x-api-key, else what follows Bearer or Token in Authorization."""
    if key := headers.get("x-api-key", "").strip():
        return key
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() or None if scheme.lower() in _SCHEMES else None
