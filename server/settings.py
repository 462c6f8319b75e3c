"""Every knob of the server: its name, unit, default and limits. Read once at start, then passed in.

A value is taken from the first place that names it: command-line flag, environment variable
FLUX_PULID_<NAME>, the TOML file given by --config, the default below. `load_settings` is the only
reader of these places and remembers which one won; `Settings(...)` itself reads nothing, so a
test builds exactly the settings it writes down.

Table for people: docs/settings.md (a test compares the two).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pulid.engine import FaceMode
from pulid.errors import SetupError
from pulid.profiles import PROFILES
from server.fields import EXPLAINED, Number, Whole, allowed, explained

ENV_PREFIX = "FLUX_PULID_"

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


class SettingsError(SetupError):
    """A key, a value or a file of settings is wrong. The text names it and where it came from."""

    code = "bad_settings"


def default_weights_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flux-pulid"


def is_loopback(host: str) -> bool:
    """Can only this machine reach a server bound to `host`?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    """All knobs, checked and frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    profile: str | None = Field(
        None,
        description="how the engine computes; not set: exact, which needs CUDA",
        json_schema_extra={"x-allowed": f"one of {', '.join(PROFILES)}"},
    )
    devices: str = Field(
        "all",
        pattern=r"^(all|cpu|\d{1,3})$",
        description="the device that computes; all: the first of the kind the profile needs",
        json_schema_extra={"x-allowed": "all, cpu, or the number of one GPU"},
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on",
        json_schema_extra={"x-allowed": "an address or a host name"},
    )
    port: Whole = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    auth: Literal["none"] | None = Field(
        None,
        validate_default=True,
        description="none: accept callers from other machines although there are no keys",
    )
    weights_dir: Path = Field(
        default_factory=default_weights_dir,
        description="folder with the model files",
        json_schema_extra={"x-allowed": "a folder"},
    )
    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="host:port list that pictures may be fetched from although it is not public",
        json_schema_extra={"x-allowed": "a list of host:port, such as photos.internal:8080"},
    )
    fetch_timeout_s: Number = Field(15, gt=0, le=300, description="seconds for the whole fetch of a picture")
    fetch_max_mb: Number = Field(20, gt=0, le=500, description="megabytes of one fetched picture")
    max_body_mb: Number = Field(32, gt=0, le=500, description="megabytes of one request body")
    max_image_mp: Number = Field(60, gt=0, le=89, description="megapixels of one decoded photo")
    max_prompt_chars: Whole = Field(10_000, ge=1, le=1_000_000, description="characters of a prompt")
    max_queued_jobs: Whole = Field(64, ge=1, le=10_000, description="waiting jobs; beyond it 429")
    v1_timeout_s: Number = Field(600, gt=0, le=86_400, description="seconds a v1 call may wait; then 504")
    face_mode: FaceMode = Field(
        "one-face", description="whose face it is; reference: as the PuLID code chooses"
    )
    credits: Whole = Field(
        1_000_000, ge=0, le=10**12, description="the constant in x-remaining-credits that old SDKs need"
    )
    log_level: LogLevel = Field("info", description="how much is logged")
    log_format: LogFormat | None = Field(None, description="not set: console on a terminal, else json")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("profile")
    @classmethod
    def _known_profile(cls, value: str | None) -> str | None:
        if value is not None and value not in PROFILES:
            raise PydanticCustomError("unknown_profile", "unknown")
        return value

    @field_validator("weights_dir")
    @classmethod
    def _home_is_expanded(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("fetch_allow", mode="before")
    @classmethod
    def _list_of_hosts(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise PydanticCustomError("not_a_list", "not a list")
        hosts = tuple(part.strip().lower() for part in parts if part.strip())
        if not all(re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\s:/\[\]]+):\d{1,5}", host) for host in hosts):
            raise PydanticCustomError("not_host_and_port", "not host:port")
        return hosts

    @field_validator("auth")
    @classmethod
    def _open_only_on_purpose(cls, value: str | None, info: ValidationInfo) -> str | None:
        host = info.data.get("host", "127.0.0.1")
        if value is None and not is_loopback(host):
            raise explained(
                f"The host {host} can be reached from other machines, and this version has no API keys: "
                "whoever reaches the port may use the GPU. Listen on 127.0.0.1, or accept that by "
                'setting auth to "none".'
            )
        return value


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    settings: Settings
    origins: Mapping[str, str]  # key → the place its value came from


@dataclass(frozen=True, slots=True)
class _Layer:
    values: Mapping[str, object]
    place: str  # with {key}, {flag} and {env}

    def origin(self, key: str) -> str:
        return self.place.format(key=key, flag=flag_of(key), env=env_of(key))


def flag_of(key: str) -> str:
    return "--" + key.replace("_", "-")


def env_of(key: str) -> str:
    return ENV_PREFIX + key.upper()


def load_settings(*, flags: Mapping[str, object] | None = None, config: Path | None = None) -> LoadedSettings:
    """Merge flags, environment and file over the defaults.

    Raises SettingsError; its text has one line for each thing that is wrong.
    """
    layers = [_Layer(flags or {}, "the flag {flag}"), _environment()]
    if config is not None:
        layers.append(_file(config))
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:  # the strongest comes first
        for key in layer.values.keys() - values.keys():
            values[key] = layer.values[key]
            origins[key] = layer.origin(key)
    try:
        settings = Settings(**values)  # type: ignore[arg-type]  # what is wrong here, pydantic says
    except ValidationError as exc:
        raise SettingsError("\n".join(_explain(error, origins) for error in exc.errors())) from exc
    return LoadedSettings(settings, {key: origins.get(key, "default") for key in Settings.model_fields})


def _environment() -> _Layer:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            _require_known(name[len(ENV_PREFIX) :].lower(), f"environment variable {name}", env_of)
    return _Layer(EnvSettingsSource(Settings)(), "the environment variable {env}")


def _file(path: Path) -> _Layer:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"The settings file {path} cannot be read: {exc.strerror}.") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise SettingsError(f"The settings file {path} is not valid TOML: {exc}.") from exc
    for key in values:
        _require_known(key, f"key {key} in {path}", str)
    return _Layer(values, "the key {key} in " + str(path).replace("{", "{{").replace("}", "}}"))


def _require_known(key: str, what: str, spell: Any) -> None:
    if key in Settings.model_fields:
        return
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    hint = f"Did you mean {spell(near[0])}?" if near else "docs/settings.md lists the known ones."
    raise SettingsError(f"Unknown setting: the {what}. {hint}")


def _explain(error: Any, origins: Mapping[str, str]) -> str:
    key = str(error["loc"][0])
    if error["type"] == EXPLAINED:
        return str(error["msg"])
    place = origins.get(key, "default")
    return f"{key} = {str(error['input'])!r} (from {place}) is not valid: use {allowed(Settings, key)}."


def describe(loaded: LoadedSettings) -> str:
    """Each setting in force and where it came from, one a line."""
    lines = []
    for key, origin in loaded.origins.items():
        value = getattr(loaded.settings, key)
        shown = ", ".join(value) if isinstance(value, tuple) else value
        lines.append(f"{key:<18} {'(not set)' if shown in (None, '') else shown!s:<28} {origin}")
    return "\n".join(lines)
