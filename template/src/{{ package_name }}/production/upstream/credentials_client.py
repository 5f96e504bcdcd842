"""One token of this server for all requests to the upstream: the client credentials grant (RFC 6749, section 4.4)."""

from __future__ import annotations

from ..registry import Registry
from .credentials_token import configured, install_grant


def install(registry: Registry) -> None:
    """Send requests to the upstream with a token that this server gets as itself.

    Raises:
        ConfigError: a setting is missing.
    """
    form = {"grant_type": "client_credentials", **configured(registry.config, "scope", "audience", "resource")}
    install_grant(registry, lambda token: form, needs_token=False)
