"""A token of each caller for the upstream, from Microsoft Entra ID: the on-behalf-of flow of its identity platform."""

from __future__ import annotations

from ..config import ConfigError
from ..registry import Registry
from .credentials_token import configured, install_grant


def install(registry: Registry) -> None:
    """Send requests to the upstream with a token that Entra ID issues for the caller.

    Raises:
        ConfigError: a setting is missing.
    """
    if registry.config.upstream_token_url and not registry.config.upstream_scope:
        raise ConfigError(["UPSTREAM_SCOPE: must be set, such as api://orders/.default"])
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "requested_token_use": "on_behalf_of",
        **configured(registry.config, "scope"),
    }
    install_grant(registry, lambda token: form | {"assertion": token}, needs_token=True)
