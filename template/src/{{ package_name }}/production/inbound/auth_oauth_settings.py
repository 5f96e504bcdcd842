"""Settings of the sign-in with an identity provider, and what differs between the providers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from ..config import (
    CommaSeparated,
    ConfigError,
    EnvironmentSettings,
    OptionalHttpUrl,
    ProductionConfig,
    UrlOrText,
)
from .guard import resolves_to_loopback

MIN_KEY_BYTES = 32
"""Length that a key of OAUTH_KEYS needs."""

ANYONE = "*"
"""Entry of OAUTH_ALLOWED_USERS that admits everyone who can sign in with the provider."""

SHARED_TENANTS = ("common", "organizations", "consumers")
"""Tenants of Entra ID in which accounts of every organisation can sign in."""


class Preset(NamedTuple):
    """What an identity provider does in its own way."""

    issuer: str | None = None
    """Its issuer, where there is only one."""
    scopes: tuple[str, ...] = ("openid", "profile", "email", "offline_access")
    parameters: Mapping[str, str] = {}
    """Further parameters of the authorization request."""
    issuers: tuple[str, ...] = ()
    """Values of `iss` beside the issuer itself."""
    verified_claim: str = "email_verified"
    """The claim that says whether the claim `email` is verified."""
    domain_claim: str | None = None
    """The claim with the domain of the account, where the domain of its e-mail address does not count."""
    open: bool = False
    """Whether everyone can have an account there."""


PRESETS: Mapping[str, Preset] = {
    # The e-mail address is what an administrator of any tenant writes; xms_edov (an optional claim) says that the
    # domain belongs to the tenant. A tenant's own issuer decides who can sign in.
    "entra": Preset(verified_claim="xms_edov"),
    "okta": Preset(),
    "auth0": Preset(),
    # Google has no scope offline_access, and gives a refresh token only with a new consent. A domain counts only with
    # hd: an account of a consumer can have an e-mail address of any domain.
    "google": Preset(
        "https://accounts.google.com",
        ("openid", "profile", "email"),
        {"access_type": "offline", "prompt": "consent"},
        issuers=("accounts.google.com",),
        domain_claim="hd",
        open=True,
    ),
    "github": Preset("https://github.com", ("read:user", "user:email"), open=True),
    "keycloak": Preset(),
    "oidc": Preset(),
}


class OAuthSettings(EnvironmentSettings):
    """Settings of the sign-in. The environment variable of a field is `OAUTH_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="OAUTH_")

    provider: Literal["entra", "okta", "auth0", "google", "github", "keycloak", "oidc"] = "oidc"
    issuer: UrlOrText | None = None
    client_id: str = ""
    client_secret: SecretStr | None = None
    scopes: CommaSeparated = ()
    allowed_users: CommaSeparated = ()
    allowed_domains: CommaSeparated = ()
    allowed_groups: CommaSeparated = ()
    allowed_tenants: CommaSeparated = ()
    groups_claim: str = "groups"
    supported_scopes: CommaSeparated = ()
    scope_claims: CommaSeparated = ()
    scope_map: CommaSeparated = ()
    tier_claim: str | None = None
    tier_map: CommaSeparated = ()
    tenant_claim: str | None = None
    keys: SecretStr | None = None
    access_token_seconds: int = Field(default=900, ge=60, le=3600)
    session_seconds: int = Field(default=30 * 86_400, ge=300, le=366 * 86_400)
    registration: bool = True
    registration_seconds: int = Field(default=90 * 86_400, ge=300, le=366 * 86_400)
    client_metadata: bool = True
    client_metadata_proxy: OptionalHttpUrl = None

    @property
    def preset(self) -> Preset:
        return PRESETS[self.provider]

    @property
    def issuer_url(self) -> str:
        return self.issuer or self.preset.issuer or ""

    @property
    def is_open(self) -> bool:
        """Return whether accounts of every organisation can sign in with the provider."""
        tenant = urlsplit(self.issuer_url).path.strip("/").partition("/")[0]
        entra = self.provider == "entra" and tenant in SHARED_TENANTS
        return entra or (self.preset.open and self.issuer_url == self.preset.issuer)

    @property
    def wants_groups(self) -> bool:
        claims = (*self.scope_claims, self.tier_claim)
        return bool(self.allowed_groups) or self.groups_claim in claims


def key_ring(value: SecretStr | None) -> tuple[str, ...]:
    """Return the keys of a ring, separated by commas or line breaks: the first one seals, all of them open.

    Raises:
        ConfigError: there is none, a key is too short, or one is there twice.
    """
    if value is None:
        return ()
    keys = [key for part in re.split(r"[,\r\n]", value.get_secret_value()) if (key := part.strip())]
    if not keys or any(len(key.encode()) < MIN_KEY_BYTES for key in keys) or len({*keys}) < len(keys):
        problem = f"OAUTH_KEYS: needs different random keys of at least {MIN_KEY_BYTES} bytes, separated by commas"
        raise ConfigError([f"{problem} (openssl rand -hex 32 makes one)"])
    return tuple(keys)


def mapping(setting: str, entries: Iterable[str]) -> dict[str, str]:
    """Return the entries `value=result` of a setting as a dictionary.

    Raises:
        ConfigError: an entry has another form.
    """
    pairs = [entry.rpartition("=") for entry in entries]
    if any(not value.strip() or not result.strip() for value, _, result in pairs):
        raise ConfigError([f"{setting}: must have entries value=result, comma-separated"])
    return {value.strip(): result.strip() for value, _, result in pairs}


def load(config: ProductionConfig) -> OAuthSettings | None:
    """Return the settings; `None` where the sign-in is not configured.

    Raises:
        ConfigError: the settings are incomplete or not valid; one line for each problem.
    """
    settings = OAuthSettings.load()
    needed = {
        "PUBLIC_URL": config.public_url,
        "OAUTH_ISSUER": settings.issuer_url,
        "OAUTH_CLIENT_ID": settings.client_id,
        "OAUTH_CLIENT_SECRET": settings.client_secret,
    }
    if not settings.client_id and settings.client_secret is None:
        return None
    problems = [f"{name}: must be set for the sign-in with {settings.provider}" for name in needed if not needed[name]]
    for name, url in (("PUBLIC_URL", config.public_url), ("OAUTH_ISSUER", settings.issuer_url)):
        parts = urlsplit(url or "")
        if url and parts.scheme != "https" and not resolves_to_loopback(parts.hostname or ""):
            problems.append(f"{name}: must be an https:// URL, unless it is one of this machine")
    if settings.is_open and not _limits_users(settings):
        problems.append(
            f"OAUTH_ALLOWED_DOMAINS: everyone can have an account at {settings.issuer_url}; say who may sign in here, "
            f"with this or OAUTH_ALLOWED_GROUPS, OAUTH_ALLOWED_TENANTS, OAUTH_ALLOWED_USERS ({ANYONE} admits all)"
        )
    if config.redis_url is not None and settings.keys is None:
        problems.append("OAUTH_KEYS: must be set with REDIS_URL, the same for all replicas")
    if problems:
        raise ConfigError(problems)
    return settings


def _limits_users(settings: OAuthSettings) -> bool:
    return bool(
        settings.allowed_users or settings.allowed_domains or settings.allowed_groups or settings.allowed_tenants
    )
