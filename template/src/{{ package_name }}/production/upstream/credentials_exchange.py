"""A token of each caller for the upstream, in exchange for the caller's own: OAuth 2.0 Token Exchange (RFC 8693)."""

from __future__ import annotations

from ..registry import Registry
from .credentials_token import configured, install_grant

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 (the name of a type)


def install(registry: Registry) -> None:
    """Send requests to the upstream with a token that the authorization server issues for the caller.

    Raises:
        ConfigError: a setting is missing.
    """
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": ACCESS_TOKEN,
        "requested_token_type": ACCESS_TOKEN,
        **configured(registry.config, "scope", "audience", "resource"),
    }
    install_grant(registry, lambda token: form | {"subject_token": token}, needs_token=True)
