"""The caller: who sent a request."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context
from starlette.requests import Request

STDIO = "stdio"
"""Id of the only caller of a server over stdio."""

UNKNOWN = "unknown"
"""Id of a caller without an address, such as one on a Unix socket."""


class Caller(NamedTuple):
    """The sender of a request, as far as the server has verified it."""

    id: str
    """The token's subject or client, else the peer address: stable, and never chosen by the caller."""
    subject: str | None = None
    """The token's `sub` (RFC 7519, section 4.1.2)."""
    client: str | None = None
    """The OAuth client or the name of a static token."""
    issuer: str | None = None
    """The token's `iss`."""
    scopes: frozenset[str] = frozenset()
    tier: str | None = None
    """The caller's limits, by their name in the settings."""
    tenant: str | None = None
    """The organisation that the caller belongs to."""
    claims: Mapping[str, Any] = MappingProxyType({})
    """All claims of a JWT; empty for a static token."""


class User(AuthenticatedUser):
    """The SDK's user of an access token, and its caller."""

    def __init__(self, token: AccessToken, caller: Caller) -> None:
        super().__init__(token)
        self.caller = caller


current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
"""The caller of the request that is being handled."""


def caller(ctx: Context[Any, Any]) -> Caller:
    """Return the caller of the request that `ctx` belongs to.

    Raises:
        LookupError: no request is being handled.
    """
    sender = current_caller.get()
    if sender is None:
        raise LookupError("caller() is available only while a request is being handled")
    return sender


@lru_cache(maxsize=4096)
def caller_at(address: str) -> Caller:
    """Return the caller without a token at an address."""
    return Caller(address)


def peer_caller(request: Request | None) -> Caller:
    """Return the caller by the address of the connection, without its token; `None` stands for stdio."""
    if request is None:
        return caller_at(STDIO)
    return caller_at(request.client.host if request.client else UNKNOWN)
