"""Identifies the caller of a request: by its access token, else by its address behind the trusted proxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mcp.server.auth.middleware.auth_context import get_access_token
from starlette.requests import Request

from ..caller import STDIO, UNKNOWN, Caller
from ..config import ConfigError
from ..registry import Registry

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def networks(entries: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and CIDR blocks as networks.

    Raises:
        ValueError: an entry is neither; the message names it.
    """
    return tuple(ip_network(entry, strict=False) for entry in entries)


def install(registry: Registry) -> None:
    """Identify callers by token and trusted proxies.

    Raises:
        ConfigError: an entry of TRUSTED_PROXIES is neither an address nor a CIDR block.
    """
    try:
        registry.identify = caller_identifier(registry.config.trusted_proxies)
    except ValueError as error:
        raise ConfigError([f"TRUSTED_PROXIES: {error} (accepted: addresses and CIDR blocks)"]) from None


def caller_identifier(trusted_proxies: Sequence[str]) -> Callable[[Request | None], Caller]:
    """Return a function that identifies the caller of a request.

    The id is the access token's subject, else its client id; without a token the peer address, taken from
    X-Forwarded-For as far as the chain of `trusted_proxies` reaches from the right. Ids inside `_meta` and session ids
    are the client's choice, so they never count.

    Raises:
        ValueError: an entry of `trusted_proxies` is neither an address nor a CIDR block.
    """
    peer = peer_address(trusted_proxies)

    def identify(request: Request | None) -> Caller:
        token = get_access_token()
        if token is not None:
            claims = token.claims or {}
            return Caller(
                id=account_id(token.subject or token.client_id),
                subject=token.subject,
                client=token.client_id,
                issuer=claims.get("iss"),
                scopes=frozenset(token.scopes),
                claims=claims,
            )
        return Caller(STDIO if request is None else peer(request))

    return identify


def peer_address(trusted_proxies: Sequence[str]) -> Callable[[Request], str]:
    """A function that names the address a request came from, with the trusted proxies looked through."""
    trusted = networks(trusted_proxies)

    def is_trusted(host: str) -> bool:
        address = parse(host)
        return address is not None and any(address in network for network in trusted)

    def peer(request: Request) -> str:
        host = request.client.host if request.client else UNKNOWN
        if trusted:
            forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
            while forwarded and is_trusted(host):
                forwarded, _, hop = forwarded.rpartition(",")
                if parse(hop) is None:  # nobody can be named beyond it
                    break
                host = hop
        return network_of(host)

    return peer


@lru_cache(maxsize=4096)
def parse(text: str) -> Address | None:
    """The address in `text`, which may have a port as in some X-Forwarded-For headers; None if there is none.

    A zone id is dropped: it means something on one machine only, and would make many clients of one.
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
    # A socket that serves both families shows IPv4 peers as ::ffff:a.b.c.d.
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def network_of(host: str) -> str:
    """How the peer `host` is named: its address, or the /64 of a public IPv6 address, all of which one client owns."""
    address = parse(host)
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv6Address) and address.is_global:
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


@lru_cache(maxsize=4096)
def account_id(name: str) -> str:
    """How the owner of a token is named: as the token does, marked where that could be taken for a peer."""
    reserved = name in (STDIO, UNKNOWN) or name.startswith("account:") or _is_network(name)
    return f"account:{name}" if reserved else name


def _is_network(name: str) -> bool:
    try:
        ip_network(name, strict=False)
    except ValueError:
        return False
    return True
