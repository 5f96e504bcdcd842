"""Settings from environment variables: the base class of all of them, and those of the production layer.

A value comes from the first of these that has it: the constructor, the environment, the template's answers
(`answers.json` beside this module), the default below.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property, partial
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
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


def _parsable(value: str) -> str:
    """Reject a value that `urlsplit` cannot parse, since its exception quotes the value; the user checks the rest."""
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError("must be a URL, or a text without the form of one") from None
    return value


def _at_least_field(name: str) -> Callable[[float, ValidationInfo], float]:
    """Return a validator that rejects values below that of the field `name`, which must be declared earlier."""

    def validate(value: float, info: ValidationInfo) -> float:
        minimum = info.data.get(name, 0.0)
        if value < minimum:
            raise ValueError(f"must not be less than {variable(name)}, which is {minimum:g}")
        return value

    return validate


HTTP_NAME = r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$"
"""A token as in RFC 9110, section 5.6.2: the name of a header or of an authentication scheme."""

CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
UrlWithQuery = Annotated[str, AfterValidator(partial(_http_url, with_query=True))]
UrlOrText = Annotated[str, AfterValidator(_parsable)]
CommaSeparatedUrls = Annotated[tuple[UrlOrText, ...], NoDecode, BeforeValidator(_split_commas)]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(lambda value: None if value == "" else value)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


UPDATE = "uvx copier update --trust --defaults --vcs-ref=:current: --data"
"""The command that changes the answers given after it."""

CHOSEN_AT_COPY = frozenset(("auth", "rate_limit_backend", "telemetry_protocol", "upstream_auth"))
"""Fields that decide which modules the project contains; the environment cannot change them."""


MIN_VARIABLE = 6
SIMILARITY = 0.87
"""A variable is a probable typo of a setting with at least this many characters and this similarity (`difflib`)."""

MAX_SECRET_BYTES = 1024 * 1024
"""Size limit of a file with a secret."""

SECRET_LISTS = ("AUTH_TOKENS", "REQUEST_STATE_KEYS", "UPSTREAM_SECRET_HEADERS")
"""Variables with several secrets, each of which may stand alone in a text."""

MIN_SECRET = 4
"""Least number of characters of a secret that is removed from messages: shorter ones are part of ordinary words."""
MIN_INFERRED = 8
"""The same for a value that counts as a secret only because of its variable's name, see `SECRET_NAME`."""

SECRET_NAME = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|COOKIE|DSN|HEADERS|UPSTREAM_KEY"
    r"|(API|ACCESS|PRIVATE|SIGNING|ENCRYPTION|SUBSCRIPTION)_?KEY)S?$"
)
"""Matches names of variables that are not settings and hold secrets, such as `OTEL_EXPORTER_OTLP_HEADERS`."""

CONNECTION_PASSWORD = re.compile(
    r"""(?:password|passwd|pwd|secret|token)(?:\s?=\s?|['"]\s?:\s?)['"]?([^\s;,&'")]+)""", re.IGNORECASE
)
"""Matches `password=x` of a connection string, and its group is the password."""

AUTH_SCHEME = re.compile(r"^(?:bearer|basic|token|apikey) +", re.IGNORECASE)

_unusable: ContextVar[list[str] | None] = ContextVar("unusable", default=None)
"""Where `_Environment` collects problems while `EnvironmentSettings.load` runs; `None`: they are raised at once."""


class _Environment(EnvSettingsSource):
    """One environment variable for each field; of a secret `X` also the file that `X_FILE` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = variable_of(self.settings_cls, field_name)
        if field_name in getattr(self.settings_cls, "not_from_environment", ()):
            return None, name, False
        value = (self.env_vars.get(name.lower()) or "").strip() or None  # a Kubernetes secret ends with a line break
        if has_file_variable(self.settings_cls, field_name):
            try:
                value = read_secret(name, value, self.env_vars.get(f"{name}_FILE".lower()))
            except ValueError as error:
                self._unusable(str(error))
                value = None
        return value, name, False

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError:  # its text may contain the value
            self._unusable(f'{variable_of(self.settings_cls, field_name)}: must be JSON, such as ["a", "b"] for a list')
            return None

    def _unusable(self, problem: str) -> None:
        problems = _unusable.get()
        if problems is None:
            raise ConfigError([problem])
        problems.append(problem)


def read_secret(name: str, value: str | None, path: str | None) -> str | None:
    """Return the secret in the variable `name`, whose value is `value`, or in the file that `<name>_FILE` names.

    A line break at the end of the file is not part of the secret.

    Raises:
        ValueError: both variables are set, or the file is empty or cannot be read; the text names the variable.
    """
    if not path:
        return value or None
    if value:
        raise ValueError(f"{name} and {name}_FILE are both set: use one of them")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{name}_FILE: {path!r} cannot be read: {reason}") from None
    if not text.strip() or len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{name}_FILE: {path!r} is {'larger than 1 MiB' if text.strip() else 'empty'}")
    return text


class EnvironmentSettings(BaseSettings):
    """Base of settings from environment variables. The variable of a field is its name in capitals."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, validate_by_name=True, hide_input_in_errors=True
    )
    not_from_environment: ClassVar[frozenset[str]] = frozenset()
    """Fields that the environment cannot set."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Return the settings from the environment, with `overrides` taking precedence.

        Raises:
            ConfigError: a value is not valid; each line names the variable, the problem and the accepted values.
        """
        problems: list[str] = []
        collecting = _unusable.set(problems)
        settings = None
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            named = {problem.partition(":")[0].partition(" ")[0].removesuffix("_FILE") for problem in problems}
            lines = (_explain(cls, dict(detail)) for detail in error.errors())
            problems += dict.fromkeys(line for line in lines if line.partition(":")[0] not in named)
        finally:
            _unusable.reset(collecting)
        if settings is None or problems:
            secrets = secret_texts()
            raise ConfigError([without_secrets(problem, secrets) for problem in problems])
        return settings


class ProductionConfig(EnvironmentSettings):
    """Settings of the production layer, from keyword arguments, the environment and the template's answers.

    The environment variable of a field is its name in capitals, or its `validation_alias`. Durations are in seconds.
    `.env.example` describes every setting.
    """

    not_from_environment = CHOSEN_AT_COPY

    transport: Literal["http", "stdio"] = Field(default="http", validation_alias="MCP_TRANSPORT")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: Port = 8000
    session_mode: Literal["stateless", "stateful"] = "stateless"
    response_mode: Literal["auto", "json", "sse"] = "auto"
    max_request_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=1024**3)
    max_json_values: int = Field(default=10_000, ge=100, le=10_000_000)
    max_http_connections: int = Field(default=4096, ge=1, le=65_536)
    max_http_connections_per_address: int = Field(default=1024, ge=1, le=65_536)
    keep_alive_seconds: Seconds = 75.0
    tool_timeout_seconds: Seconds = 60.0
    max_result_bytes: int = Field(default=100_000, ge=0, le=1024**3)
    result_text_copy: bool = True
    max_tool_threads: int = Field(default=40, ge=1, le=10_000)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)

    allowed_hosts: CommaSeparated = ()
    allowed_origins: CommaSeparated = ()
    trusted_proxies: CommaSeparated = ()
    public_url: OptionalHttpUrl = None

    request_state_keys: SecretStr | None = None

    auth: Literal["token", "jwt", "oauth", "none"] = "token"
    auth_tokens: SecretStr | None = None
    auth_tokens_file: Path | None = None
    auth_methods: CommaSeparated = ()
    enable_auth_tokens: bool = False
    jwt_issuer: UrlOrText | None = None
    jwt_issuers: CommaSeparatedUrls = ()
    jwt_issuers_file: Path | None = None
    jwt_audience: CommaSeparatedUrls = ()
    jwt_jwks_url: UrlWithQuery | None = None
    jwt_required_scopes: CommaSeparated = ()
    jwt_scope_claims: CommaSeparated = ("scope", "scp")
    jwt_tier_claim: str | None = None
    jwt_tenant_claim: str | None = None
    introspection_url: UrlWithQuery | None = None
    introspection_client_id: str = ""
    introspection_client_secret: SecretStr | None = None
    introspection_cache_seconds: Seconds = 30.0

    enable_authorization: bool = False
    access_rules_file: Path | None = None
    default_access: Literal["allow", "deny"] = "allow"
    anonymous_scopes: CommaSeparated = ()

    enable_audit: bool = False

    tools_allow: CommaSeparated = ()
    tools_deny: CommaSeparated = ()
    read_only: bool = False
    health_tool: bool = True

    enable_logging: bool = True
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"
    log_arguments: bool = False
    log_access_sampling: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)

    enable_metrics: bool = True
    metrics_port: Port | None = None
    enable_metrics_tool: bool = False

    enable_rate_limiting: bool = True
    rate_limit_requests: int = Field(default=100, ge=1, le=1_000_000_000)
    rate_limit_window_seconds: int = Field(default=60, ge=1, le=86_400, validation_alias="RATE_LIMIT_WINDOW")
    rate_limit_tiers: CommaSeparated = ()
    rate_limit_key: Literal["caller", "tenant"] = "caller"
    rate_limit_messages: int | None = Field(default=None, ge=1, le=10_000_000_000)
    rate_limit_backend: Literal["memory", "redis"] = "memory"
    rate_limit_on_store_failure: Literal["local", "open", "closed"] = "local"
    enable_redis: bool = False
    redis_url: SecretStr | None = None

    enable_telemetry: bool = True
    telemetry_endpoint: OptionalHttpUrl = Field(default=None, validation_alias="OTEL_EXPORTER_ENDPOINT")
    telemetry_protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    telemetry_caller_sampling: bool = False

    upstream_base_url: HttpUrl = Field(default="https://api.open-meteo.com", validation_alias="BASE_URL")
    upstream_api_key_env: str = ""
    upstream_api_key_header: str = Field(default="Authorization", pattern=HTTP_NAME)
    upstream_api_key_scheme: str = Field(default="Bearer", pattern=HTTP_NAME)
    upstream_api_key_query: str = ""
    max_connections: int = Field(default=100, ge=1, le=10_000)
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
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        answers = InitSettingsSource(settings_cls, ANSWERS["config"])
        return *super().settings_customise_sources(settings_cls, *sources, **named), answers

    @model_validator(mode="after")
    def _read_upstream_key(self) -> Self:
        _ = self.upstream_api_key  # read now, so that an unreadable file is reported with the other problems
        return self

    @cached_property
    def upstream_api_key(self) -> SecretStr | None:
        """The API key in the environment variable that `upstream_api_key_env` names, or `None`."""
        name = self.upstream_api_key_env
        value = os.environ.get(name, "").strip()
        key = read_secret(name, value, os.environ.get(f"{name}_FILE")) if name else None
        return None if key is None else SecretStr(key)


def without_credentials(url: str) -> str:
    """Return `url` without user, password, query and fragment, also where it is no valid URL."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    return scheme + separator + re.split("[?#]", rest.rpartition("@")[2])[0]


def variable(field_name: str) -> str:
    """Return the environment variable of a field of `ProductionConfig`."""
    return variable_of(ProductionConfig, field_name)


def variable_of(model: type[BaseSettings], field_name: str) -> str:
    """Return the environment variable of a field: its `validation_alias`, else `env_prefix` and its name."""
    alias = model.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else f"{model.model_config.get('env_prefix', '')}{field_name}".upper()


def variables(model: type[BaseSettings]) -> dict[str, FieldInfo]:
    """Return the fields of a model by their environment variables."""
    return {variable_of(model, name): field for name, field in model.model_fields.items()}


def holds_secret(annotation: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Return whether values of a type hint are or contain secrets: `SecretStr`, `SecretBytes` or `Secret[...]`."""
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type):
        if issubclass(kind, (SecretStr, SecretBytes, Secret)):
            return True
        if issubclass(kind, BaseModel) and kind not in seen:
            return any(holds_secret(field.annotation, seen | {kind}) for field in kind.model_fields.values())
    parts = (getattr(annotation, "__value__", None), *get_args(annotation))
    return any(holds_secret(part, seen) for part in parts if part is not None and not isinstance(part, (str, int)))


def has_file_variable(model: type[BaseSettings], field_name: str) -> bool:
    """Return whether `X_FILE` may name a file with the secret `X`; not where another field is that variable."""
    field = model.model_fields[field_name]
    return holds_secret(field.annotation) and f"{variable_of(model, field_name)}_FILE" not in variables(model)


def settings_models() -> list[type[EnvironmentSettings]]:
    """Return all imported classes of settings: the template's, which `production.features` imports, and the owner's."""
    models: list[type[EnvironmentSettings]] = [EnvironmentSettings]
    for model in models:
        models += model.__subclasses__()
    return models


def known_variables(models: Iterable[type[BaseSettings]]) -> set[str]:
    """Return the environment variables of these models, with the `X_FILE` of their secrets."""
    known: set[str] = set()
    for model in models:
        for field_name in model.model_fields:
            name = variable_of(model, field_name)
            known |= {name, f"{name}_FILE"} if has_file_variable(model, field_name) else {name}
    return known


def near_misses(known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each variable of the environment that is probably a typo, and the name in `known` that it stands for."""
    names = {name for name in known if len(name) >= MIN_VARIABLE}
    unset = [name for name in names if not os.environ.get(name)]
    for name in sorted(os.environ):
        written = name.upper()
        if written in names or name.startswith("OTEL_"):
            continue
        # Comparing with all of them takes a millisecond for each variable of the environment.
        similar = [other for other in unset if other[:3] == written[:3] or other[-3:] == written[-3:]]
        for meant in difflib.get_close_matches(written, similar, 1, SIMILARITY):
            yield name, meant


def probable_typos(problems: Iterable[str] | None = None) -> list[str]:
    """Return a line for each probable typo in a variable's name; with `problems`, only those that explain one."""
    lines = []
    for name, meant in near_misses(known_variables(settings_models())):
        named = problems is None or any(meant in text and f"{name} is set" not in text for text in problems)
        lines += [f"{name} is set but is not a setting of this server: did you mean {meant}?"] if named else []
    return lines


def secret_texts() -> list[str]:
    """Return the secrets in the environment and in the files that it names, as `without_secrets` needs them.

    These are the secrets among the settings, the template's and the owner's, and what other libraries and the owner's
    code may read: variables whose name denotes a secret, and the credentials in URLs and in connection strings.
    """
    fields = {name: field for model in settings_models() for name, field in variables(model).items()}
    names = {name for name, field in fields.items() if holds_secret(field.annotation)}
    names.add(os.environ.get("UPSTREAM_API_KEY_ENV") or ANSWERS["config"]["upstream_api_key_env"])
    texts: set[str] = set()
    for name in filter(None, names):
        texts |= _forms_of(name, is_list=name in SECRET_LISTS)
    for name, value in os.environ.items():
        base = name.upper().removesuffix("_FILE")
        if base not in fields.keys() | names and SECRET_NAME.search(base):
            texts |= {form for form in _forms_of(base, is_list=True) if len(form) >= MIN_INFERRED}
        if "=" in value or "@" in value:
            texts |= secret_forms(value) - {value.strip(), unquote(value.strip())}
    return sorted((text for text in texts if len(text) >= MIN_SECRET), key=len, reverse=True)


def _forms_of(name: str, *, is_list: bool) -> set[str]:
    value = os.environ.get(name, "")
    with contextlib.suppress(ValueError):  # both are set, or the file cannot be read
        value = read_secret(name, value, os.environ.get(f"{name}_FILE")) or ""
    return secret_forms(value, is_list=is_list)


def secret_forms(value: str, *, is_list: bool = False) -> set[str]:
    """Return the forms in which a secret may occur in texts, such as itself or the password of a URL in it.

    Args:
        value: The secret, which may be a URL or a connection string with a password.
        is_list: Whether `value` is a list, separated by commas or line breaks, of `name:secret`, `name=secret` or
            `secret`.
    """
    texts = {value.strip(), *(match[1] for match in CONNECTION_PASSWORD.finditer(value))}
    if is_list:
        for item in re.split(r"[,\r\n]", value):
            for part in (item, item.partition(":")[2], item.partition("=")[2]):
                word = AUTH_SCHEME.sub("", unquote(part).strip()).partition(" ")[0]
                texts |= {part.strip(), word, word.strip("\"'")}
    if "://" in value:
        user = value.partition("://")[2].rpartition("@")[0]
        texts |= {user, user.partition(":")[2]}
    return {form for text in texts for form in (text, unquote(text))}


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without `secrets`, credentials in URLs and passwords in connection strings.

    `secrets` must be sorted, the longest first, since a secret may be a part of another one.
    """
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = re.sub(r"://[^\s/]+@", "://[redacted]@", text)
    return CONNECTION_PASSWORD.sub(lambda match: match[0].replace(match[1], "[redacted]"), text)


def _explain(model: type[BaseSettings], detail: dict[str, Any]) -> str:
    """Return one line about one of pydantic's errors."""
    fields = variables(model)
    by_key = {field_name.lower(): variable_of(model, field_name) for field_name in model.model_fields}
    by_key |= {name.lower(): name for name in fields}
    problem = " ".join(str(detail["msg"]).removeprefix("Value error, ").split())
    if not detail["loc"]:
        return problem
    key, *rest = map(str, detail["loc"])
    name = by_key.get(key.lower())
    if name is None:
        return f"{key}: {problem}"
    field = fields[name]
    if detail["type"] == "missing" and not rest:
        described = f" ({field.description})" if field.description else ""
        typed = next((typed for typed, meant in near_misses([name]) if meant == name), None)
        return f"{name}: is required{described}" + (f"; {typed} is set: is it a typo?" if typed else "")
    items = "".join(f"item {index}: " for index in detail["loc"][1:] if isinstance(index, int))
    accepted = accepted_values(field)
    return f"{name}: {items}{problem}" + (f" ({accepted})" if accepted else "")


def accepted_values(field: FieldInfo) -> str:
    """Return the accepted values of a switch or a number, or nothing for other types."""
    if field.annotation is bool:
        return "accepted: true, false"
    options = [FieldInfo.from_annotation(option) for option in get_args(field.annotation) if get_origin(option)]
    bounds = {
        attribute: getattr(constraint, attribute)
        for constraint in itertools.chain(field.metadata, *(option.metadata for option in options))
        for attribute in ("ge", "gt", "le", "lt")
        if getattr(constraint, attribute, None) is not None
    }
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    if "gt" in bounds:
        words["le"] = "at most {}"
    if "ge" not in bounds and "gt" not in bounds:
        words["le"] = "up to {}"
    texts = [words[name].format(bounds[name]) for name in ("ge", "gt", "le", "lt") if name in bounds]
    if not texts:
        return ""
    return "accepted: " + (" " if {"ge", "le"} <= bounds.keys() else ", ").join(texts)
