"""The settings of the production layer, in one frozen object.

A value comes from the first of these that has it: the constructor, the environment, the template's answers
(`answers.json` beside this module), the default below.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
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
"""The template's answers: `slug`, `title`, and under `config` the fields of `ProductionConfig` that they set."""


class About(NamedTuple):
    """The server's name, version and description, as MCP clients, `/health` and traces show them."""

    name: str
    title: str
    version: str
    description: str


def about() -> About:
    """Return the server's identity from the metadata of the installed distribution, which `pyproject.toml` defines.

    Raises:
        ConfigError: the distribution is not installed.
    """
    name: str = ANSWERS["slug"]
    try:
        project = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        raise ConfigError([f"the distribution {name} is not installed: run `uv sync`, then `uv run {name}`"]) from None
    return About(name, ANSWERS["title"], project["Version"], (project.get_all("Summary") or [""])[0])


class ConfigError(Exception):
    """The configuration is not valid; `problems` has one line for each problem and contains no secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(Exception):
    """The server cannot start for a reason other than its configuration; the text has one line for each problem."""


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for raw in value.split(",") if (part := raw.strip()))
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _http_url(value: str, *, with_query: bool = False) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be an http:// or https:// URL with a host, such as https://api.example.com/v1")
    if parts.username is not None or parts.fragment or (parts.query and not with_query):
        forbidden = "no credentials" if with_query else "no credentials, no query string"
        raise ValueError(f"must have {forbidden} and no fragment")
    return value if with_query else value.rstrip("/")


def _at_least_field(name: str) -> Callable[[float, ValidationInfo], float]:
    """Return a validator that rejects values below that of the field `name`, which must be declared earlier."""

    def validate(value: float, info: ValidationInfo) -> float:
        minimum = info.data.get(name, 0.0)
        if value < minimum:
            raise ValueError(f"must not be less than {variable(name)}, which is {minimum:g}")
        return value

    return validate


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


HTTP_NAME = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
"""A token as in RFC 9110, section 5.6.2: the name of a header or of an authentication scheme."""

CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
UrlWithQuery = Annotated[str, AfterValidator(partial(_http_url, with_query=True))]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(_empty_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


CHOSEN_AT_COPY = frozenset(("auth", "rate_limit_backend", "telemetry_protocol", "upstream_auth"))
"""Fields that decide which modules the project contains; the environment cannot change them."""


class _Environment(EnvSettingsSource):
    """Environment variables, one for each field, without the fields in `CHOSEN_AT_COPY`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = field.validation_alias if isinstance(field.validation_alias, str) else field_name
        value = None if field_name in CHOSEN_AT_COPY else self.env_vars.get(name.lower())
        return (value or "").strip() or None, name, False  # a Kubernetes secret often ends with a line break


class ProductionConfig(BaseSettings):
    """Settings of the production layer, from keyword arguments, the environment and the template's answers.

    The environment variable of a field is its name in capitals, or its `validation_alias`. Durations are in seconds.
    `.env.example` describes every setting.
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
    max_http_connections: int = Field(default=4096, ge=1, le=65_536)
    max_http_connections_per_address: int = Field(default=1024, ge=1, le=65_536)
    keep_alive_seconds: Seconds = 75.0
    tool_timeout_seconds: Seconds = 60.0
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)

    allowed_hosts: CommaSeparated = ()
    allowed_origins: CommaSeparated = ()
    trusted_proxies: CommaSeparated = ()

    auth: Literal["token", "jwt", "none"] = "token"
    auth_tokens: SecretStr | None = None
    auth_tokens_file: Path | None = None
    auth_methods: CommaSeparated = ()
    enable_auth_tokens: bool = False
    jwt_issuer: str | None = None
    jwt_issuers: CommaSeparated = ()
    jwt_issuers_file: Path | None = None
    jwt_audience: CommaSeparated = ()
    jwt_jwks_url: UrlWithQuery | None = None
    jwt_required_scopes: CommaSeparated = ()
    jwt_scope_claims: CommaSeparated = ("scope", "scp")
    jwt_tier_claim: str | None = None
    jwt_tenant_claim: str | None = None
    introspection_url: UrlWithQuery | None = None
    introspection_client_id: str = ""
    introspection_client_secret: SecretStr | None = None
    introspection_cache_seconds: Seconds = 30.0

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
    rate_limit_messages: int | None = Field(default=None, ge=1, le=10_000_000_000)
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
    upstream_allowed_hosts: CommaSeparated = ()
    upstream_auth: Literal["api_key", "per_caller", "client_credentials", "token_exchange", "entra_obo"] = "api_key"
    upstream_keys_file: Path | None = None
    upstream_token_url: UrlWithQuery | None = None
    upstream_client_id: str = ""
    upstream_client_secret: SecretStr | None = None
    upstream_client_auth: Literal["basic", "post"] = "basic"
    upstream_scope: str = ""
    upstream_audience: str = ""
    upstream_resource: str = ""
    request_timeout_seconds: Seconds = 30.0
    attempt_timeout_seconds: Seconds = 10.0
    max_response_bytes: int = Field(default=10 * 1024 * 1024, ge=1024, le=1024**3)

    enable_retries: bool = True
    max_retries: int = Field(default=3, ge=0, le=100)
    retry_delay_seconds: Seconds = 1.0
    retry_max_delay_seconds: Annotated[Seconds, AfterValidator(_at_least_field("retry_delay_seconds"))] = 30.0

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
        """Return the configuration from the environment, with `overrides` (command-line options) taking precedence.

        Raises:
            ConfigError: a value is not valid; each line names the variable, the problem and the accepted values.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ConfigError([_explain(cls, dict(detail)) for detail in error.errors()]) from None

    @property
    def upstream_api_key(self) -> SecretStr | None:
        """The API key in the environment variable that `upstream_api_key_env` names, or `None`."""
        value = os.environ.get(self.upstream_api_key_env, "") if self.upstream_api_key_env else ""
        return SecretStr(value) if value else None


def without_credentials(url: str) -> str:
    """Return `url` without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def coloured(stream: TextIO | None) -> bool:
    """Return whether to write colours: to a terminal, unless NO_COLOR (no-color.org) or TERM=dumb is set."""
    allowed = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return allowed and stream is not None and stream.isatty()


def variable(field_name: str) -> str:
    """Return the environment variable of a field of `ProductionConfig`."""
    alias = ProductionConfig.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else field_name.upper()


def _explain(model: type[ProductionConfig], detail: dict[str, Any]) -> str:
    """Return one line about one of pydantic's errors."""
    by_variable = {variable(name).lower(): name for name in model.model_fields}
    key = str(detail["loc"][0]) if detail["loc"] else ""
    name = by_variable.get(key.lower(), key)
    if name not in model.model_fields:
        return f"{name or 'configuration'}: {detail['msg']}"
    problem = str(detail["msg"]).removeprefix("Value error, ")
    accepted = _accepted(model.model_fields[name])
    return f"{variable(name)}: {problem}" + (f" ({accepted})" if accepted else "")


def _accepted(field: FieldInfo) -> str:
    """Return the accepted values of a switch or a number, or nothing for other types."""
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
