"""Identification of the caller of a request: by its access token, else by its address behind the trusted proxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mcp.server.auth.middleware.auth_context import auth_context_var
from starlette.requests import Request

from ..caller import STDIO, UNKNOWN, Caller, User, caller_at
from ..config import ConfigError
from ..registry import Registry

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def install(registry: Registry) -> None:
    """Identify callers by their access token or their address.

    Raises:
        ConfigError: an entry of TRUSTED_PROXIES is neither an address nor a CIDR block.
    """
    try:
        registry.identify = caller_identifier(registry.config.trusted_proxies)
    except ValueError as error:
        raise ConfigError([f"TRUSTED_PROXIES: {error} (accepted: addresses and CIDR blocks)"]) from None


def caller_identifier(trusted_proxies: Sequence[str]) -> Callable[[Request | None], Caller]:
    """Return a function that identifies the caller of a request.

    The caller is that of the access token, else the one at `peer_address`. Session ids and ids in `_meta` are not used,
    because the sender chooses them.

    Raises:
        ValueError: an entry of `trusted_proxies` is neither an address nor a CIDR block.
    """
    address = peer_address(trusted_proxies)

    def identify(request: Request | None) -> Caller:
        user = auth_context_var.get()
        if isinstance(user, User):
            return user.caller
        return caller_at(STDIO if request is None else address(request))

    return identify


def peer_address(trusted_proxies: Sequence[str]) -> Callable[[Request], str]:
    """Return a function that returns the id of a request's peer: its address, see `address_id`.

    X-Forwarded-For is read from the right, as long as the address to the right of an entry is a trusted proxy.

    Raises:
        ValueError: an entry of `trusted_proxies` is neither an address nor a CIDR block; the message names it.
    """
    trusted: list[Network] = [ip_network(entry, strict=False) for entry in trusted_proxies]

    def is_trusted(host: str) -> bool:
        address = parse_address(host)
        return address is not None and any(address in network for network in trusted)

    def peer(request: Request) -> str:
        host = request.client.host if request.client else UNKNOWN
        if trusted:
            forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
            while forwarded and is_trusted(host):
                forwarded, _, hop = forwarded.rpartition(",")
                if parse_address(hop) is None:
                    break
                host = hop
        return address_id(host)

    return peer


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


KINDS = ("account", "client", "token")
"""Prefixes of caller ids: a reserved name, a client without a subject, a static token beside other methods."""


@lru_cache(maxsize=4096)
def account_id(name: str, kind: str = "", issuer: str = "") -> str:
    """Return the caller id for a name in a token. No two of name, kind and issuer share one.

    Args:
        name: The subject, or the name of the client or the static token.
        kind: `client` or `token` where `name` is no subject that the main issuer has issued.
        issuer: The URL of an issuer other than the main one.
    """
    if kind:
        name = f"{kind}:{name}"
    elif name in (STDIO, UNKNOWN) or name.startswith(_RESERVED) or _is_network(name):
        name = f"account:{name}"
    return f"{issuer}#{name}" if issuer else name


_RESERVED = (*(f"{kind}:" for kind in KINDS), "http://", "https://")  # an issuer is a URL


def _is_network(name: str) -> bool:
    try:
        ip_network(name, strict=False)
    except ValueError:
        return False
    return True
