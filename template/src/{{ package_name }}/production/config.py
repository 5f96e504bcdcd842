"""The server's settings: one frozen object, built once at the edge and passed down.

A value comes, in this order, from the constructor, the environment, the answers given to the template
(``answers.json`` beside this module) and the default below. Nothing else in the package reads the environment.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TextIO, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ANSWERS: Mapping[str, Any] = json.loads(resources.files(__package__).joinpath("answers.json").read_text("utf-8"))


class About(NamedTuple):
    """What the server says of itself: to clients, in `/health`, and as the resource of its traces."""

    name: str
    title: str
    version: str
    description: str


def about() -> About:
    """The distribution's own metadata, so that `pyproject.toml` is the only place that states them.

    Raises:
        ConfigError: the distribution is not installed, as when the sources run from a plain copy.
    """
    name: str = ANSWERS["slug"]
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        raise ConfigError([f"the distribution {name} is not installed: run `uv sync`, then `uv run {name}`"]) from None
    return About(name, ANSWERS["title"], found["Version"], (found.get_all("Summary") or [""])[0])


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has one readable line each, none with a secret's text."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(Exception):
    """The server cannot start, whatever its configuration; the text has one line for each problem."""


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for raw in value.split(",") if (part := raw.strip()))
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be an http:// or https:// URL with a host, such as https://api.example.com/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no credentials, no query string and no fragment")
    return value.rstrip("/")


def _not_before(earlier: str) -> Callable[[float, ValidationInfo], float]:
    def check(value: float, info: ValidationInfo) -> float:
        least = info.data.get(earlier, 0.0)
        if value < least:
            raise ValueError(f"must not be less than {variable(earlier)}, which is {least:g}")
        return value

    return check


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


HTTP_NAME = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
"""A header's name, or an authentication scheme's (RFC 9110, 5.6.2)."""

CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(_empty_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


CHOSEN_AT_COPY = frozenset(("auth", "rate_limit_backend", "telemetry_protocol"))
"""Fields whose value decides which module the project has; the environment cannot change them."""


class _Environment(EnvSettingsSource):
    """The environment, each field by its one variable, without what only the template's answers may decide."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = field.validation_alias if isinstance(field.validation_alias, str) else field_name
        value = None if field_name in CHOSEN_AT_COPY else self.env_vars.get(name.lower())
        return value, name, False


class ProductionConfig(BaseSettings):
    """Every setting of the production layer; field names are the template's questions.

    Build it in Python (``ProductionConfig(rate_limit_requests=100)``) or from the environment
    (``ProductionConfig()``); `load` does the latter with errors made for the operator. Durations are seconds.
    An environment variable is the field's name in capitals unless the field names another.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, validate_by_name=True, hide_input_in_errors=True
    )

    transport: Literal["http", "stdio"] = Field(default="http", validation_alias="MCP_TRANSPORT")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: Port = 8000
    session_mode: Literal["stateless", "stateful"] = "stateless"
    response_mode: Literal["json", "sse"] = "json"
    max_request_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=1024**3)
    tool_timeout_seconds: Seconds = 60.0
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)

    allowed_hosts: CommaSeparated = ()
    allowed_origins: CommaSeparated = ()
    trusted_proxies: CommaSeparated = ()

    auth: Literal["token", "jwt", "none"] = "token"
    auth_tokens: SecretStr | None = None
    auth_tokens_file: Path | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks_url: OptionalHttpUrl = None
    jwt_required_scopes: CommaSeparated = ()

    enable_logging: bool = True
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"
    log_arguments: bool = False

    enable_metrics: bool = True
    metrics_port: Port | None = None
    enable_metrics_tool: bool = False

    enable_rate_limiting: bool = True
    rate_limit_requests: int = Field(default=100, ge=1, le=1_000_000_000)
    rate_limit_window_seconds: int = Field(default=60, ge=1, le=86_400, validation_alias="RATE_LIMIT_WINDOW")
    rate_limit_backend: Literal["memory", "redis"] = "memory"
    rate_limit_on_store_failure: Literal["local", "open", "closed"] = "local"
    redis_url: SecretStr | None = None

    enable_telemetry: bool = True
    telemetry_endpoint: OptionalHttpUrl = Field(default=None, validation_alias="OTEL_EXPORTER_ENDPOINT")
    telemetry_protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"

    upstream_base_url: HttpUrl = Field(default="https://api.open-meteo.com", validation_alias="BASE_URL")
    upstream_api_key_env: str = ""
    upstream_api_key_header: str = Field(default="Authorization", pattern=HTTP_NAME)
    upstream_api_key_scheme: str = Field(default="Bearer", pattern=HTTP_NAME)
    upstream_api_key_query: str = ""
    request_timeout_seconds: Seconds = 30.0
    attempt_timeout_seconds: Seconds = 10.0
    max_response_bytes: int = Field(default=10 * 1024 * 1024, ge=1024, le=1024**3)

    enable_retries: bool = True
    max_retries: int = Field(default=3, ge=0, le=100)
    retry_delay_seconds: Seconds = 1.0
    retry_max_delay_seconds: Annotated[Seconds, AfterValidator(_not_before("retry_delay_seconds"))] = 30.0

    enable_circuit_breaker: bool = True
    circuit_failure_threshold: int = Field(default=5, ge=1, le=1_000_000)
    circuit_recovery_timeout: Seconds = 30.0
    circuit_half_open_requests: int = Field(default=1, ge=1, le=1000)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, ANSWERS["config"])

    @classmethod
    def load(cls, **overrides: Any) -> ProductionConfig:
        """The configuration from the environment, `overrides` (command-line options) winning.

        Raises:
            ConfigError: one line per bad field, naming the variable, the problem and the accepted values.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ConfigError([_explain(cls, dict(detail)) for detail in error.errors()]) from None

    @property
    def upstream_api_key(self) -> SecretStr | None:
        """The upstream's key, from the environment variable that `upstream_api_key_env` names."""
        value = os.environ.get(self.upstream_api_key_env, "") if self.upstream_api_key_env else ""
        return SecretStr(value) if value else None


OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables for where traces go."""


def exports_traces(config: ProductionConfig) -> bool:
    """Whether traces have somewhere to go, by `OTEL_EXPORTER_ENDPOINT` or the standard `OTEL_*`, which win."""
    environment = otel_environment()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporters:
        return "otlp" in exporters
    return config.telemetry_endpoint is not None or any(name in environment for name in OTLP_ENDPOINTS)


def traces_endpoint(config: ProductionConfig) -> str:
    """Where traces go when they are exported; without any setting it is the standard's default."""
    environment = otel_environment()
    named = next((environment[name] for name in OTLP_ENDPOINTS if name in environment), config.telemetry_endpoint)
    return named or ("http://localhost:4317" if config.telemetry_protocol == "grpc" else "http://localhost:4318")


def without_credentials(url: str) -> str:
    """Return `url` without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def coloured(stream: TextIO | None) -> bool:
    """Whether to colour what goes to `stream`: a terminal that can, and nobody has asked for none (no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream is not None and stream.isatty()


def otel_environment() -> Mapping[str, str]:
    """OpenTelemetry's own variables, which its SDK reads by itself; an empty one counts as unset, as the SDK has it."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_") and value}


def variable(field_name: str) -> str:
    """The environment variable of a field of `ProductionConfig`."""
    alias = ProductionConfig.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else field_name.upper()


def _explain(model: type[ProductionConfig], detail: dict[str, Any]) -> str:
    by_variable = {variable(name).lower(): name for name in model.model_fields}
    key = str(detail["loc"][0]) if detail["loc"] else ""
    name = by_variable.get(key.lower(), key)
    if name not in model.model_fields:
        return f"{name or 'configuration'}: {detail['msg']}"
    problem = str(detail["msg"]).removeprefix("Value error, ")
    accepted = _accepted(model.model_fields[name])
    return f"{variable(name)}: {problem}" + (f" ({accepted})" if accepted else "")


def _accepted(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "accepted: true, false"
    options = [FieldInfo.from_annotation(option) for option in get_args(field.annotation) if get_origin(option)]
    bounds = {
        attribute: getattr(constraint, attribute)
        for constraint in itertools.chain(field.metadata, *(option.metadata for option in options))
        for attribute in ("ge", "gt", "le")
        if getattr(constraint, attribute, None) is not None
    }
    if "le" not in bounds:
        return ""
    if "gt" in bounds:
        return f"accepted: above {bounds['gt']}, at most {bounds['le']}"
    return f"accepted: from {bounds['ge']} to {bounds['le']}"
