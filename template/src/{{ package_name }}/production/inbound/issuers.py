"""The trusted issuers of access tokens, and the caller that the claims of one of their tokens name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from mcp.server.auth.provider import AccessToken
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..caller import Caller, User
from ..config import ConfigError, ProductionConfig, UrlWithQuery
from ..registry import Registry
from .auth import AuthError
from .claims import claim, texts
from .guard import resolves_to_loopback
from .identity import account_id


def _issuer_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be the issuer's URL, exactly as in the iss claim of its tokens")
    return value


class Issuer(BaseModel):
    """An issuer, and how its tokens are read. An entry of `JWT_ISSUERS_FILE` has these fields but `main`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    issuer: Annotated[str, AfterValidator(_issuer_url)]
    audience: tuple[str, ...] = Field(min_length=1)
    """One of them has to be in `aud`."""
    jwks_url: UrlWithQuery | None = None
    required_scopes: tuple[str, ...] = ()
    scope_claims: tuple[str, ...] = ()
    tier_claim: str | None = None
    tenant_claim: str | None = None
    main: bool = False
    """Whether it is `JWT_ISSUER`, whose subjects are caller ids as they are."""

    def user(self, claims: Mapping[str, Any], token: bytes) -> User:
        """Return the user that verified claims name.

        Raises:
            AuthError: they name neither a subject nor a client, or a required scope is missing.
        """
        subject = _text_claim(claims, "sub")
        client = _text_claim(claims, "client_id", "azp", "cid") or subject
        if client is None:
            raise AuthError(401, "invalid_token", "The access token names neither a subject nor a client")
        scopes = list(dict.fromkeys(scope for name in self.scope_claims for scope in texts(claim(claims, name))))
        missing = sorted({*self.required_scopes} - {*scopes})
        if missing:
            raise AuthError(403, "insufficient_scope", f"The access token lacks the scope {' '.join(missing)}")
        audience = [value for value in self.audience if value in texts(claims.get("aud"), separator=None)]
        access_token = AccessToken(
            token=token.decode("ascii"),
            client_id=client,
            scopes=scopes,
            expires_at=int(claims["exp"]) if "exp" in claims else None,
            resource=audience[0] if audience else None,
            subject=subject,
            claims=dict(claims),
        )
        caller = Caller(
            account_id(subject or client, "" if subject else "client", "" if self.main else self.issuer),
            subject=subject,
            client=client,
            issuer=self.issuer,
            scopes=frozenset(scopes),
            tier=next(iter(texts(claim(claims, self.tier_claim), separator=None)), None),
            tenant=next(iter(texts(claim(claims, self.tenant_claim), separator=None)), None),
            claims=access_token.claims or {},
        )
        return User(access_token, caller)


def trusted_issuers(config: ProductionConfig) -> list[Issuer]:
    """Return the issuers: `JWT_ISSUER`, those of `JWT_ISSUERS`, and those of `JWT_ISSUERS_FILE`.

    Raises:
        ConfigError: a setting or the file is not valid.
    """
    common = {
        "audience": config.jwt_audience,
        "required_scopes": config.jwt_required_scopes,
        "scope_claims": config.jwt_scope_claims,
        "tier_claim": config.jwt_tier_claim,
        "tenant_claim": config.jwt_tenant_claim,
    }
    entries: list[tuple[str, dict[str, Any]]] = []
    if config.jwt_issuer:
        main = {"issuer": config.jwt_issuer, "jwks_url": config.jwt_jwks_url, "main": True}
        entries.append(("JWT_ISSUER", main))
    entries += [("JWT_ISSUERS", {"issuer": url}) for url in config.jwt_issuers]
    if config.jwt_issuers_file is not None:
        entries += _file_entries(config.jwt_issuers_file)
    if not config.jwt_audience and any("audience" not in entry for _, entry in entries):
        raise ConfigError(
            [
                "JWT_AUDIENCE: must be set with JWT_ISSUER, or tokens issued for other services would be accepted; "
                "use the public URL of this server's /mcp"
            ]
        )
    issuers: dict[str, Issuer] = {}
    for setting, entry in entries:
        try:
            issuer = Issuer.model_validate(common | entry)
        except ValidationError as error:
            raise ConfigError([f"{setting}: {_explain(error)}"]) from None
        if issuer.issuer in issuers:
            raise ConfigError([f"{setting}: the issuer {issuer.issuer} occurs twice"])
        issuers[issuer.issuer] = issuer
    return [*issuers.values()]


def warn_without_tls(registry: Registry, setting: str, url: str, danger: str) -> None:
    """Add a notice if a URL of another machine is plain http; `danger` says what can happen."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not resolves_to_loopback(parts.hostname or ""):
        registry.notices.append(f"{setting} is not https: {danger}")


def _file_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the entries `[[issuers]]` of a TOML file, each with its place for error messages."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([f"JWT_ISSUERS_FILE: {path} cannot be read: {error.strerror}"]) from None
    except ValueError as error:  # no UTF-8 or no TOML
        raise ConfigError([f"JWT_ISSUERS_FILE: {path} is not valid TOML: {error}"]) from None
    entries = document.pop("issuers", None)
    tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if document or not entries or not tables:
        raise ConfigError([f"JWT_ISSUERS_FILE: {path} must have entries [[issuers]] and nothing else"])
    return [(f"JWT_ISSUERS_FILE: entry {number}", entry | {"main": False}) for number, entry in enumerate(entries, 1)]


def _explain(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    problem = str(detail["msg"]).removeprefix("Value error, ")
    place = ".".join(str(part) for part in detail["loc"])
    return problem if place == "issuer" else f"{place}: {problem}"


def _text_claim(claims: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the claims `names` that is a non-empty string.

    Raises:
        AuthError: it has unprintable characters, which a log or a header could not hold.
    """
    text = next((value for name in names if isinstance(value := claims.get(name), str) and value), None)
    if text is not None and not text.isprintable():
        raise AuthError(401, "invalid_token", "The access token has a name with unprintable characters")
    return text
