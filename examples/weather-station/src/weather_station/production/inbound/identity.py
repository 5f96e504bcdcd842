"""Identification of the caller of a request: by its access token, else by its address behind the trusted proxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_network

from mcp.server.auth.middleware.auth_context import auth_context_var
from starlette.requests import Request

from ..caller import STDIO, UNKNOWN, Caller, User, address_id, caller_at, is_within, parse_address, trusted_networks
from ..registry import Registry

MAX_HOPS = 32
"""Greatest number of entries of X-Forwarded-For that are read, from the right."""

MAX_HOP_CHARACTERS = 64
"""Longest entry of X-Forwarded-For that can be an address, with its port and blanks."""


def install(registry: Registry) -> None:
    """Identify callers by their access token or their address.

    Raises:
        ConfigError: an entry of TRUSTED_PROXIES is neither an address nor a CIDR block.
    """
    registry.identify = caller_identifier(registry.config.trusted_proxies)


def caller_identifier(trusted_proxies: Sequence[str]) -> Callable[[Request | None], Caller]:
    """Return a function that identifies the caller of a request.

    The caller is that of the access token, else the one at `peer_address`. Session ids and ids in `_meta` are not used,
    because the sender chooses them.

    Raises:
        ConfigError: an entry of `trusted_proxies` is neither an address nor a CIDR block.
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
        ConfigError: an entry of `trusted_proxies` is neither an address nor a CIDR block.
    """
    trusted = trusted_networks(trusted_proxies)

    def peer(request: Request) -> str:
        client = request.scope.get("client")
        return address_id(client[0]) if client else UNKNOWN

    def peer_behind_proxies(request: Request) -> str:
        client = request.scope.get("client")
        host = client[0] if client else UNKNOWN
        hops = ",".join(request.headers.getlist("x-forwarded-for")).rsplit(",", MAX_HOPS)
        while hops and is_within(host, trusted):
            hop = hops.pop()
            if len(hop) > MAX_HOP_CHARACTERS or parse_address(hop) is None:
                break
            host = hop
        return address_id(host)

    return peer_behind_proxies if trusted else peer


KINDS = ("account", "client", "token")
"""Prefixes of caller ids: a reserved name, a client without a subject, a static token beside other methods."""


@lru_cache(maxsize=4096)
def account_id(name: str, kind: str = "", issuer: str = "") -> str:
    """Return the caller id for a name in a token. No two of name, kind and issuer share one.

    Args:
        name: The subject, or the name of the client or the static token.
        kind: `client` or `token` unless `name` is a subject of the main issuer.
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
