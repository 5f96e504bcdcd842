"""What an OpenAPI document says of all its tools: servers, and headers that are settings and not arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from pydantic import SecretStr, field_validator

from .config import HTTP_NAME, EnvironmentSettings
from .openapi import AnswerMetadata
from .registry import Registry, registry_of

MAX_NAMED = 5
"""Number of tools that `--check` names."""

_HEADER = HTTP_NAME.strip("^$")
_NEXT_HEADER = re.compile(rf"(?:\s*,\s*|\s*[\r\n]+\s*)(?={_HEADER}:)")
"""Matches the separator between two headers; a comma that no header follows is part of the value."""


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers in `Name:value,Name:value`, where line breaks can stand for commas.

    Raises:
        ValueError: an entry is not of that form, or a value cannot be sent in a header.
    """
    headers: dict[str, str] = {}
    for entry in filter(None, _NEXT_HEADER.split(text.strip())):
        name, colon, value = (part.strip() for part in entry.partition(":"))
        if not colon or not re.fullmatch(HTTP_NAME, name):
            raise ValueError("must be headers Name:value, comma-separated")
        if not value or not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value of {name} must be printable ASCII")
        headers[name] = value
    return headers


class HeaderSettings(EnvironmentSettings):
    """Headers of each request to the API."""

    upstream_headers: str = ""
    upstream_secret_headers: SecretStr | None = None

    @field_validator("upstream_headers", "upstream_secret_headers")
    @classmethod
    def _are_headers(cls, value: str | SecretStr | None) -> str | SecretStr | None:
        parse_headers(_text(value))
        return value


def _text(value: str | SecretStr | None) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value or ""


def describe(
    server: MCPServer[Any],
    *,
    title: str,
    version: str = "",
    servers: Sequence[str] = (),
    headers: Mapping[str, str | None] | None = None,
    secret_headers: Sequence[str] = (),
) -> None:
    """Send the document's headers with each request, and let `--check` compare the document with the settings.

    Args:
        server: A server made by `create_server`.
        title: The title of the document.
        version: Its version.
        servers: The URLs of the API's servers.
        headers: Headers by name, with the document's value; `UPSTREAM_HEADERS` overrides it.
        secret_headers: Names of further headers with credentials, which `UPSTREAM_SECRET_HEADERS` sets.

    Raises:
        TypeError: the server was not made by `create_server`.
        ConfigError: a setting is not valid.
    """
    registry = registry_of(server)
    settings = HeaderSettings.load()
    secret = parse_headers(_text(settings.upstream_secret_headers))
    registry.secrets.add(*secret.values())
    given = parse_headers(settings.upstream_headers) | secret
    own = {name.lower() for name in given}
    defaults = {name: value for name, value in (headers or {}).items() if value and name.lower() not in own}
    registry.upstream.headers |= defaults | given
    for setting, names in (("UPSTREAM_HEADERS", headers or {}), ("UPSTREAM_SECRET_HEADERS", secret_headers)):
        known = own | {name.lower() for name in defaults}
        if missing := [name for name in names if name.lower() not in known]:
            registry.notices.append(f"{setting}: the document of {title} has {', '.join(missing)}, which is not set")
    registry.check_rows.append(lambda tools: _rows(registry, f"{title} {version}".strip(), servers, tools))


def _rows(
    registry: Registry, document: str, servers: Sequence[str], tools: Sequence[Tool]
) -> Iterator[tuple[str, str]]:
    yield "document", document
    yield from _answer_rows(tools)
    if registry.upstream.headers:
        yield "headers", ", ".join(registry.upstream.headers)
    base_url = registry.config.upstream_base_url
    if servers and _comparable(base_url) not in map(_comparable, servers):
        yield "advice", f"BASE_URL is {base_url}, and the document of {document} names {', '.join(servers)}"


def _answer_rows(tools: Sequence[Tool]) -> Iterator[tuple[str, str]]:
    """Yield what happens to answers that do not match the document."""
    strict = {tool.name: tool.fn_metadata.strict for tool in tools if isinstance(tool.fn_metadata, AnswerMetadata)}
    if lenient := [name for name in strict if not strict[name]]:
        which = f"{len(lenient)} of {len(strict)} tools" if len(lenient) > MAX_NAMED else ", ".join(lenient)
        yield (
            "answers",
            f"lenient in {which}: one that does not match the document is passed on and logged; "
            f"to make it an error, generate with --strict, or register the tool with add(..., strict=True)",
        )
    elif strict:
        yield "answers", "strict: one that does not match the document is an error of the tool"


def _comparable(url: str) -> str:
    return re.sub(r"^https?:", "", url).rstrip("/").lower()
