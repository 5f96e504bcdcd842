"""Only requests for an allowed host, from an allowed origin and of a bounded size and depth reach the MCP handler.

`Guard` stands at the edge of `/mcp`, before authentication; `InputLimits` behind it, so that nobody without a token
makes the server read a body. A refusal is a JSON-RPC error, which MCP clients show to their user.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import ConfigError, ProductionConfig
from ..registry import Registry
from .http_limits import RejectionLog, header_of, http_error

MAX_NAME = 400
"""Bytes of a Host or Origin header: a host name has at most 253 (RFC 1035, section 2.3.4)."""

BLANKS = (b" ", b"\t")

ANY_PORT = -1
DEFAULT_PORTS = {"http": 80, "https": 443}

Entry = TypeVar("Entry", bound=tuple[object, ...])


class Authority(NamedTuple):
    """Host and port as a URL has them; the host in lower case, an IPv6 address compressed and in brackets."""

    host: str
    port: int | None


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?)(?::([0-9]{1,5}|\*))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")


def install(registry: Registry) -> None:
    """Refuses bad entries of the lists at the start, and says where the server trusts everyone.

    Raises:
        ConfigError: an entry of ALLOWED_HOSTS or ALLOWED_ORIGINS is none.
    """
    config = registry.config
    problems = []
    for rule in (host_rule, origin_rule):
        try:
            rule(config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if config.transport == "http" and config.auth == "none" and not binds_loopback(config.host):
        registry.notices.append(f"there is no authentication: everyone who reaches {config.host} can call every tool")
        if not config.allowed_hosts:
            registry.notices.append(
                "ALLOWED_HOSTS is empty: web pages can reach this server through DNS rebinding; list its public names"
            )


class Guard:
    """Answers 421 for a wrong Host and 403 for a wrong Origin, and speaks CORS with allowed origins.

    Both headers are parsed, not matched by prefix. Browsers send Origin with every request that another site may
    have caused; other clients send none, and pass.
    """

    def __init__(self, config: ProductionConfig, app: ASGIApp) -> None:
        self._app = app
        # Clients repeat themselves: a lookup instead of parsing. Bounded, in number here and in size below, for the
        # values are theirs.
        self._host_allowed = functools.lru_cache(256)(host_rule(config))
        self._origin_allowed = functools.lru_cache(256)(origin_rule(config))
        self._log_rejection = RejectionLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = origin = None
        headers = scope["headers"]
        for at, (name, value) in enumerate(headers):
            if value.endswith(BLANKS):  # no part of the value (RFC 9110, section 5.5), but httptools leaves it there
                value = value.rstrip(b" \t")
                headers[at] = (name, value)
            if name == b"host":
                host = value if host is None else b""  # twice: neither counts (RFC 9112, section 3.2)
            elif name == b"origin":
                origin = value if origin is None else b""
        if host is None or len(host) > MAX_NAME or not self._host_allowed(host):
            self._log_rejection("host is not allowed", host=_shown(host), setting="ALLOWED_HOSTS")
            await http_error(send, 421, f"This server does not answer for host {_shown(host)}: see ALLOWED_HOSTS.")
            return
        if origin is None:
            await self._app(scope, receive, send)
            return
        if len(origin) > MAX_NAME or not self._origin_allowed(origin, host):
            self._log_rejection("origin is not allowed", origin=_shown(origin), setting="ALLOWED_ORIGINS")
            await http_error(send, 403, f"Requests from origin {_shown(origin)} are not allowed: see ALLOWED_ORIGINS.")
            return
        if scope["method"] == "OPTIONS" and header_of(scope, b"access-control-request-method") is not None:
            await _preflight(scope, send, origin)
            return
        await self._app(scope, receive, _readable_for(origin, send))


def host_rule(config: ProductionConfig) -> Callable[[bytes], bool]:
    """Whether a Host header is allowed. Without ALLOWED_HOSTS a server bound to loopback answers for loopback names
    only (DNS rebinding), any other for every host: authentication protects it.

    Raises:
        ConfigError: an entry is none of `host`, `host:port`, `host:*` and `*`.
    """
    entries = _parsed("ALLOWED_HOSTS", config.allowed_hosts, _authority, "host, host:port, host:* or *")
    if entries is None:
        return lambda value: True
    allowed = {Authority(host, ANY_PORT if port is None else port) for host, port in entries}
    loopback_only = not allowed and binds_loopback(config.host)

    def rule(value: bytes) -> bool:
        host = _authority(value.decode("latin-1"))
        if host is None or host.port == ANY_PORT:
            return False
        if loopback_only:
            return _names_loopback(host.host) or host.host == config.host.lower()
        return not allowed or _listed(host, allowed)

    return rule


def origin_rule(config: ProductionConfig) -> Callable[[bytes, bytes], bool]:
    """Whether an Origin header is allowed beside a Host header that is. Without ALLOWED_ORIGINS: the server's own
    origin, and loopback origins where the server is bound to loopback.

    Raises:
        ConfigError: an entry is none of `scheme://host`, `scheme://host:port`, `scheme://host:*` and `*`.
    """
    accepted = "a full origin such as https://app.example.com, or *"
    entries = _parsed("ALLOWED_ORIGINS", config.allowed_origins, _origin, accepted)
    if entries is None:
        return lambda origin, host: True
    allowed = {Origin(scheme, host, port or DEFAULT_PORTS.get(scheme)) for scheme, host, port in entries}
    local = binds_loopback(config.host)

    def rule(value: bytes, host: bytes) -> bool:
        origin = _origin(value.decode("latin-1"))
        if origin is None or origin.port == ANY_PORT:
            return False
        default = DEFAULT_PORTS.get(origin.scheme)
        origin = origin._replace(port=origin.port or default)
        if allowed:
            return origin in allowed or origin._replace(port=ANY_PORT) in allowed
        if default is None:
            return False
        if local and _names_loopback(origin.host):
            return True
        own = _authority(host.decode("latin-1"))
        return own is not None and (own.host, own.port or default) == (origin.host, origin.port)

    return rule


def binds_loopback(host: str) -> bool:
    """Whether a socket bound to `host` is reachable from this machine only. In doubt it is not."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback(str(address[4][0])) for address in found)


async def _preflight(scope: Scope, send: Send, origin: bytes) -> None:
    # The origin is trusted and no cookie is ever looked at, so it may send what it likes: the protocol's
    # own headers alone are an open set (Mcp-Param-*).
    requested = header_of(scope, b"access-control-request-headers")
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-max-age", b"600"),
        *([] if requested is None else [(b"access-control-allow-headers", requested)]),
    ]
    sending = _readable_for(origin, send)
    await sending({"type": "http.response.start", "status": 204, "headers": headers})
    await sending({"type": "http.response.body", "body": b""})


def _readable_for(origin: bytes, send: Send) -> Send:
    """Lets the page of `origin` read the answer."""
    cors = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"mcp-session-id, www-authenticate, retry-after"),
        (b"vary", b"Origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *cors]}
        await send(message)

    return sending


def own_host(scope: Scope) -> str | None:
    """The Host header in lower case, None where it is none."""
    text = (header_of(scope, b"host") or b"").decode("latin-1")
    return text.lower() if _authority(text) else None


def _parsed(
    setting: str, entries: tuple[str, ...], parse: Callable[[str], Entry | None], accepted: str
) -> list[Entry] | None:
    """The parsed entries of a list, None where one is `*`."""
    parsed = [(entry, parse(entry)) for entry in entries if entry != "*"]
    bad = [f"{setting}: {entry!r} is not {accepted}" for entry, value in parsed if value is None]
    if bad:
        raise ConfigError(bad)
    if "*" in entries:
        return None
    return [value for _, value in parsed if value is not None]


def _authority(text: str) -> Authority | None:
    match = _AUTHORITY.fullmatch(text.lower())
    if match is None:
        return None
    host, port = match.groups()
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    if port is None:
        return Authority(host, None)
    number = ANY_PORT if port == "*" else int(port)
    return Authority(host, number) if number <= 65535 else None


def _origin(text: str) -> Origin | None:
    match = _ORIGIN.fullmatch(text.lower())
    authority = _authority(match[2]) if match else None
    return Origin(match[1], *authority) if match and authority else None


def _listed(host: Authority, allowed: set[Authority]) -> bool:
    # Without a port the client means its scheme's default, which a proxy may have hidden from us.
    ports = (*DEFAULT_PORTS.values(), ANY_PORT) if host.port is None else (host.port, ANY_PORT)
    return any(Authority(host.host, port) in allowed for port in ports)


def _names_loopback(host: str) -> bool:
    return host == "localhost" or _is_loopback(host.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def _shown(value: bytes | None) -> str:
    return "(none)" if value is None else repr(value.decode("latin-1")[:100])
