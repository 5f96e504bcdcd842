"""Credentials of the upstream API."""

from __future__ import annotations

from base64 import b64encode
from typing import NamedTuple
from urllib.parse import quote

import httpx2

from ..config import ConfigError, ProductionConfig


class Credentials(NamedTuple):
    """The upstream's key in the form in which it is sent to the origin of `BASE_URL`."""

    name: str
    """Name of the header or the query parameter."""
    value: str
    in_query: bool = False

    def add_to(self, request: httpx2.Request) -> None:
        """Add the key to `request`, unless the tool has set the same header or parameter."""
        if not self.in_query:
            request.headers.setdefault(self.name, self.value)
        elif self.name not in request.url.params:
            parameter = f"{quote(self.name, safe='')}={quote(self.value, safe='')}".encode()
            request.url = request.url.copy_with(query=b"&".join(filter(None, (request.url.query, parameter))))


def credentials_of(config: ProductionConfig) -> Credentials | None:
    """Return the server's own key, or `None` where none is configured or requests have other credentials.

    Raises:
        ConfigError: the key cannot be sent in a header.
    """
    key = config.upstream_api_key if config.upstream_auth == "api_key" else None
    if key is None:
        return None
    try:
        return key_credentials(config, key.get_secret_value())
    except ValueError as error:
        raise ConfigError([f"{config.upstream_api_key_env}: {error}"]) from None


def key_credentials(config: ProductionConfig, key: str) -> Credentials:
    """Return `key` in the form that the settings `UPSTREAM_API_KEY_*` describe.

    Raises:
        ValueError: the key cannot be sent in a header.
    """
    value = key.strip()
    if config.upstream_api_key_query:
        return Credentials(config.upstream_api_key_query, value, in_query=True)
    if not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII, because it is sent in a header")
    name, scheme = config.upstream_api_key_header, config.upstream_api_key_scheme
    if name.lower() != "authorization" or scheme.lower() == "none":
        return Credentials(name, value)
    if scheme.lower() == "basic":  # the key is user:password (RFC 7617)
        value = b64encode(value.encode()).decode()
    return Credentials(name, f"{scheme} {value}")
