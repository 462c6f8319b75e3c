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
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, ValidationInfo, field_validator
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
from pulid.profiles import AUTO, PROFILES
from server.fields import EXPLAINED, NotBoolean, Number, Whole, allowed, explained, rule_of
from weights.manifest import BaseModel, PulidVersion

ENV_PREFIX = "FLUX_PULID_"

_A_DAY_S = 86_400
_A_YEAR_S = 365 * _A_DAY_S

KEY_NAME = r"[A-Za-z0-9._-]{1,64}"
_API_KEY = re.compile(rf"{KEY_NAME}:[!-~]+|[!-9;-~]+")  # name:key, or a key without a colon

# In the environment and as a flag a list is text with commas, never JSON.
TextList = Annotated[tuple[str, ...], NoDecode]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


class SettingsError(SetupError):
    """A key, a value or a file of settings is wrong. The text names it and where it came from."""

    code = "bad_settings"


def default_weights_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flux-pulid"


def default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "flux-pulid"


def is_loopback(host: str) -> bool:
    """Can only this machine reach a server bound to `host`?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    """All knobs, checked and frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a key
    )

    profile: str | None = Field(
        None,
        description="how the engine computes; auto: as the cards allow; not set: exact, which needs CUDA",
        json_schema_extra={"x-allowed": f"one of {', '.join([*PROFILES, AUTO])}"},
    )
    devices: str = Field(
        "all",
        pattern=r"^(all|cpu(,cpu)*|\d{1,3}(,\d{1,3})*)$",
        description="the devices that compute, one worker each; all: every one of the kind the profile needs",
        json_schema_extra={"x-allowed": "all, cpu, cpu,cpu and so on, or numbers of GPUs such as 0,1"},
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on",
        json_schema_extra={"x-allowed": "an address or a host name"},
    )
    port: Whole = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_url: str | None = Field(
        None,
        description="base of the links in answers, as callers reach it; not set: from the Host header",
        json_schema_extra={"x-allowed": "an http(s) address such as https://flux.example.com"},
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description="addresses of proxies whose X-Forwarded-Proto and X-Forwarded-Host count",
        json_schema_extra={"x-allowed": "a list of addresses or networks, such as 127.0.0.1,10.0.0.0/8"},
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="API keys, each with or without a name",
        json_schema_extra={
            "x-allowed": "a list of name:key, or keys, in visible ASCII characters",
            "x-secret": True,
        },
    )
    api_keys_file: Path | None = Field(
        None,
        description="file with the names and hashes of API keys; read again on SIGHUP",
        json_schema_extra={"x-allowed": "a file, as `flux-pulid keys add` writes it"},
    )
    auth: Literal["keys", "none"] | None = Field(
        None,
        validate_default=True,
        description="who may call; not set: keys where there are keys, else everybody on this machine",
    )
    metrics_public: bool = Field(False, description="answer /metrics without a key")
    cors_origins: TextList = Field(
        (),
        description="web pages that may call; not set: any where there are keys, else the server's own",
        json_schema_extra={"x-allowed": "*, or a list of origins such as https://app.example.com"},
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="folder for the database, request bodies and pictures; one server each",
        json_schema_extra={"x-allowed": "a folder"},
    )
    database_url: SecretStr | None = Field(
        None,
        description="database that several servers share; not set: SQLite in the data folder",
        json_schema_extra={
            "x-allowed": "a PostgreSQL address such as postgresql://flux@db.internal/flux",
            "x-secret": True,
        },
    )
    media_url: str | None = Field(
        None,
        validate_default=True,
        description="where several servers keep bodies and pictures; not set: in the data folder",
        json_schema_extra={"x-allowed": "s3://bucket/prefix, or file:///folder that all of them mount"},
    )
    weights_dir: Path = Field(
        default_factory=default_weights_dir,
        description="folder with the model files",
        json_schema_extra={"x-allowed": "a folder"},
    )
    base_model: BaseModel = Field("flux1-dev", description="whose FLUX transformer paints")
    pulid_version: PulidVersion = Field("v0.9.1", description="whose identity weights")
    lora: TextList = Field(
        (),
        description="LoRA files merged into the transformer at start, each with a scale or at 1",
        json_schema_extra={
            "x-allowed": "a list of files, each as path or path:scale, such as film.safetensors:0.8"
        },
    )
    turbo_threshold: Annotated[float, Field(ge=0, le=1), NotBoolean] | None = Field(
        None,
        description="turbo: how near a step is to the last full one when it is skipped; 0: none is",
    )
    t5_int8: bool = Field(
        False,
        description="T5's matrices in int8, for profiles in 8 bits: 4.6 GB less of the card or the host",
    )
    fetch_allow: TextList = Field(
        (),
        description="host:port list that pictures may be fetched from although it is not public",
        json_schema_extra={"x-allowed": "a list of host:port, such as photos.internal:8080"},
    )
    fetch_timeout_s: Number = Field(15, gt=0, le=300, description="seconds for the whole fetch of a picture")
    fetch_max_mb: Number = Field(20, gt=0, le=500, description="megabytes of one photo, fetched or sent")
    max_body_mb: Number = Field(32, gt=0, le=500, description="megabytes of one request body")
    max_image_mp: Number = Field(60, gt=0, le=89, description="megapixels of one decoded photo")
    max_prompt_chars: Whole = Field(10_000, ge=1, le=1_000_000, description="characters of a prompt")
    max_queued_jobs: Whole = Field(64, ge=1, le=10_000, description="waiting jobs; beyond it 429")
    concurrency_per_key: Whole = Field(
        0, ge=0, le=10_000, description="unfinished jobs of one key; beyond it 429; 0: no limit"
    )
    rate_limit: Whole = Field(
        0, ge=0, le=1_000_000, description="jobs one key may submit a minute; beyond it 429; 0: no limit"
    )
    job_deadline_s: Number = Field(
        600, gt=0, le=_A_DAY_S, description="seconds from submit in which a job must be done"
    )
    v1_timeout_s: Number = Field(600, gt=0, le=_A_DAY_S, description="seconds a v1 call may wait; then 504")
    v1_response: Literal["bytes", "json"] = Field(
        "bytes", description="what v1 answers with when the call does not say"
    )
    v2_strict: bool = Field(False, description="refuse invalid v2 bodies at submit")
    adapters: TextList = Field(
        (),
        description="interfaces of other services that are served beside v1 and v2",
        json_schema_extra={"x-allowed": "a list of openai, replicate"},
    )
    face_mode: FaceMode = Field(
        "one-face", description="whose face it is; reference: as the PuLID code chooses"
    )
    result_ttl_s: Number = Field(
        3600, gt=0, le=_A_YEAR_S, description="seconds the record of an ended job is kept"
    )
    media_ttl_s: Number = Field(604_800, gt=0, le=_A_YEAR_S, description="seconds its pictures are kept")
    drain_s: Number = Field(60, ge=0, le=_A_DAY_S, description="seconds to end in after SIGTERM")
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

    @property
    def needs_key(self) -> bool:
        """Whether a call must carry an API key."""
        return self.auth == "keys" or (self.auth is None and bool(self.api_keys or self.api_keys_file))

    @property
    def loras(self) -> tuple[tuple[Path, float], ...]:
        """The files of `lora` with their scales."""
        return tuple(map(_path_and_scale, self.lora))

    @field_validator("profile")
    @classmethod
    def _known_profile(cls, value: str | None) -> str | None:
        if value is not None and value not in (*PROFILES, AUTO):
            raise PydanticCustomError("unknown_profile", "unknown")
        return value

    @field_validator("devices", mode="before")
    @classmethod
    def _one_spelling_of_devices(cls, value: object) -> object:
        if type(value) is int:  # devices = 0 in TOML
            return str(value)
        return value.replace(" ", "") if isinstance(value, str) else value

    @field_validator("devices")
    @classmethod
    def _each_gpu_once(cls, value: str) -> str:
        numbers = [part for part in value.split(",") if part.isdecimal()]
        if len(set(map(int, numbers))) < len(numbers):
            raise explained(f"devices = {value!r} names a GPU twice. One worker uses all of a GPU.")
        return value

    @field_validator("weights_dir", "data_dir", "api_keys_file")
    @classmethod
    def _home_is_expanded(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @field_validator("public_url")
    @classmethod
    def _base_of_links(cls, value: str | None) -> str | None:
        if value is not None and not _is_base_url(value):
            raise PydanticCustomError("not_a_base_url", "not an http(s) address")
        return None if value is None else value.rstrip("/")

    @field_validator(
        "trusted_proxies", "api_keys", "cors_origins", "fetch_allow", "lora", "adapters", mode="before"
    )
    @classmethod
    def _list_of_texts(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(
            isinstance(part, str | SecretStr) for part in parts
        ):
            raise PydanticCustomError("not_a_list", "not a list")
        texts = (part.strip() if isinstance(part, str) else part for part in parts)
        return tuple(text for text in texts if text)

    @field_validator("api_keys")
    @classmethod
    def _keys_can_be_sent(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(_API_KEY.fullmatch(key.get_secret_value()) for key in value):
            raise PydanticCustomError("not_a_key", "not a key")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"postgres(ql)?://", value.get_secret_value()):
            raise PydanticCustomError("not_a_database", "not a PostgreSQL address")
        return value

    @field_validator("media_url")
    @classmethod
    def _shared_with_the_database(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not re.fullmatch(r"s3://[^/?#]+(/[^?#]*)?|file:///[^?#]+", value):
            raise PydanticCustomError("not_a_media_place", "not a place for pictures")
        if "database_url" in info.data and (value is None) != (info.data["database_url"] is None):
            raise explained(
                "database_url and media_url go together: servers that share their records need the same "
                "place for bodies and pictures. Set both, or neither."
            )
        return value

    @field_validator("auth")
    @classmethod
    def _open_only_on_purpose(cls, value: str | None, info: ValidationInfo) -> str | None:
        host = info.data.get("host", "127.0.0.1")
        if _has_keys(info):
            return value
        if value == "keys":
            raise explained('auth is "keys", but there are none. Set api_keys or api_keys_file.')
        if value is None and not is_loopback(host):
            raise explained(
                f"The host {host} can be reached from other machines, and there are no API keys: "
                "whoever reaches the port may use the GPU. Set api_keys or api_keys_file, listen on "
                '127.0.0.1, or accept that by setting auth to "none".'
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in value:
            if info.data.get("auth") == "none" or not _has_keys(info):
                raise explained(
                    "cors_origins = '*' needs API keys: without them any web page could use the GPU. "
                    "Set api_keys or api_keys_file, or list the origins."
                )
            return ("*",)
        origins = tuple(origin.rstrip("/").lower() for origin in value)
        if not all(_is_base_url(origin) and not urlsplit(origin).path for origin in origins):
            raise PydanticCustomError("not_an_origin", "not an origin")
        return origins

    @field_validator("lora")
    @classmethod
    def _scales_are_numbers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            _path_and_scale(text)
        return value

    @field_validator("turbo_threshold")
    @classmethod
    def _only_where_steps_are_skipped(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None or "profile" not in info.data:  # a profile that is not valid is told already
            return value
        name = info.data["profile"] or "exact"
        if name == AUTO or PROFILES[name].skip_threshold is None:
            raise explained(
                f"turbo_threshold = {value:g} is for the profile turbo: {name} skips no steps. "
                "Leave turbo_threshold out, or choose the profile turbo."
            )
        return value

    @field_validator("t5_int8")
    @classmethod
    def _only_where_8_bits_are_promised(cls, value: bool, info: ValidationInfo) -> bool:
        name = info.data.get("profile", AUTO) or "exact"
        if value and name != AUTO and PROFILES[name].linears == "full":
            raise explained(
                f"t5_int8 = true is for profiles that compute in 8 bits: {name} does not. "
                "Leave t5_int8 out, or choose the profile fp8."
            )
        return value

    @field_validator("adapters")
    @classmethod
    def _known_adapters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= {"openai", "replicate"}:
            raise PydanticCustomError("unknown_adapter", "unknown")
        return tuple(dict.fromkeys(value))

    @field_validator("fetch_allow")
    @classmethod
    def _hosts_with_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in value)
        if not all(re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\s:/\[\]]+):\d{1,5}", host) for host in hosts):
            raise PydanticCustomError("not_host_and_port", "not host:port")
        return hosts


def _path_and_scale(text: str) -> tuple[Path, float]:
    """From `path` or `path:scale`. What follows the last colon is a number, also where paths hold colons."""
    path, colon, scale = text.rpartition(":")
    if not colon:
        return Path(text).expanduser(), 1.0
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not path or not math.isfinite(number):
        raise PydanticCustomError("not_a_scale", "not a scale")
    return Path(path).expanduser(), number


def _has_keys(info: ValidationInfo) -> bool:
    """Whether any key is set. Keys that are not valid count: that they are is told already."""
    return "api_keys" not in info.data or bool(info.data["api_keys"] or info.data.get("api_keys_file"))


def _is_base_url(text: str) -> bool:
    """An http(s) address to which a path can be added."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = re.fullmatch(r"[!-~]+", text) and not re.search(r"[?#@\\\"<>]", text)
    return bool(plain and parts.scheme in ("http", "https") and parts.hostname and port != 0)


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
    value = "(hidden)" if _is_secret(key) else repr(str(error["input"]))
    return f"{key} = {value} (from {place}) is not valid: use {allowed(Settings, key)}."


def _is_secret(key: str) -> bool:
    return "x-secret" in rule_of(Settings, key)


def describe(loaded: LoadedSettings) -> str:
    """Each setting in force and where it came from, one a line. API keys are masked by their type."""
    return "\n".join(
        f"{key:<19} {_shown(getattr(loaded.settings, key)):<28} {origin}"
        for key, origin in loaded.origins.items()
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "(not set)" if value is None or not text else text
