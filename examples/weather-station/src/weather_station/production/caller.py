"""The caller: who sent a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType
from typing import Any, NamedTuple

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context
from starlette.requests import Request

from .config import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

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

    def __init__(self, token: AccessToken, caller: Caller, subject_token: str | None = None) -> None:
        super().__init__(token)
        self.caller = caller
        self.subject_token = token.token if subject_token is None else subject_token
        """The token that stands for the caller at a token exchange; empty if there is none."""


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


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """Return the address in `text`, without a port or zone id, or `None` if it is not an address.

    Some proxies add the port to X-Forwarded-For. A zone id is local to one machine, and would give one caller many ids.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket reports IPv4 peers as ::ffff:a.b.c.d.
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def address_id(host: str) -> str:
    """Return the caller id for an address: the address itself, but for a public IPv6 address its /64 network.

    One subscriber usually has a /64, and could otherwise use any number of ids.
    """
    address = parse_address(host)
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv6Address) and address.is_global:
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def trusted_networks(trusted_proxies: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks of the addresses and CIDR blocks in TRUSTED_PROXIES.

    Raises:
        ConfigError: an entry is neither an address nor a CIDR block.
    """
    try:
        return tuple(ip_network(entry, strict=False) for entry in trusted_proxies)
    except ValueError as error:
        raise ConfigError([f"TRUSTED_PROXIES: {error} (accepted: addresses and CIDR blocks)"]) from None


@lru_cache(maxsize=4096)
def is_within(host: str, blocks: tuple[Network, ...]) -> bool:
    """Return whether the address in `host` belongs to one of `blocks`."""
    address = parse_address(host)
    return address is not None and any(address in block for block in blocks)
