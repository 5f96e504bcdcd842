"""Validation of the Host and Origin headers of requests to the MCP endpoint, and CORS for allowed origins.

This prevents DNS rebinding; MCP requires it for Origin (specification 2025-11-25, basic/transports#security-warning).
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import ConfigError, ProductionConfig
from ..memo import Memo
from ..observe.rejections import Rejections
from ..registry import Registry
from .http_limits import header_of, http_error, is_repeated, read_headers

MAX_HEADER_BYTES = 400
"""Longest accepted Host or Origin header; a host name has at most 253 bytes (RFC 1035, section 2.3.4)."""

REPORTS = ("/health", "/metrics")
"""Routes without a token that report on the server."""

ANY_PORT = -1
DEFAULT_PORTS = {"http": 80, "https": 443}

Entry = TypeVar("Entry", bound=tuple[object, ...])


class Authority(NamedTuple):
    """Host and port (RFC 3986, section 3.2), the host in lower case and an IPv6 address in its shortest form."""

    host: str
    port: int | None


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?\.?)(?::([0-9]{1,5}|\*))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")


def install(registry: Registry) -> None:
    """Validate ALLOWED_HOSTS and ALLOWED_ORIGINS, and add notices for a server that is open to other machines.

    Raises:
        ConfigError: an entry of one of the lists is not valid.
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
    if config.transport == "http" and config.auth == "none" and not resolves_to_loopback(config.host):
        registry.notices.append(f"there is no authentication: everyone who reaches {config.host} can call every tool")
        if not config.allowed_hosts:
            registry.notices.append(
                "ALLOWED_HOSTS is empty: web pages can reach this server through DNS rebinding; list its public names"
            )


class Guard:
    """ASGI middleware that rejects a Host (421) or Origin (403) that is not allowed, and handles CORS.

    Browsers send Origin with every cross-origin request; a request without it does not come from another site's page.
    """

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        config = registry.config
        self._app = app
        # Clients send the same values again and again.
        self._host_allowed = Memo(host_rule(config))
        self._origin_allowed = functools.lru_cache(256)(origin_rule(config))
        self._rejected = Rejections(registry)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        headers = read_headers(scope)
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if is_repeated(scope, b"host"):  # not valid (RFC 9112, section 3.2)
            host = b""
        if origin is not None and is_repeated(scope, b"origin"):
            origin = b""
        if host is None or len(host) > MAX_HEADER_BYTES or not self._host_allowed[host]:
            return _reject_host(self._rejected, scope, send, host)
        if origin is None:
            return self._app(scope, receive, send)
        return self._cross_origin(scope, receive, send, origin, host)

    async def _cross_origin(self, scope: Scope, receive: Receive, send: Send, origin: bytes, host: bytes) -> None:
        if len(origin) > MAX_HEADER_BYTES or not self._origin_allowed(origin, host):
            self._rejected("origin", "origin is not allowed", scope, origin=_quoted(origin), setting="ALLOWED_ORIGINS")
            await http_error(send, 403, f"Requests from origin {_quoted(origin)} are not allowed: see ALLOWED_ORIGINS.")
            return
        if scope["method"] == "OPTIONS" and header_of(scope, b"access-control-request-method") is not None:
            await _answer_preflight(scope, send, origin)
            return
        await self._app(scope, receive, _with_cors_headers(origin, send))


def host_rule(config: ProductionConfig) -> Callable[[bytes], bool]:
    """Return a function that returns whether a Host header is allowed.

    Without ALLOWED_HOSTS, a server on a loopback address allows loopback names and its own HOST (against DNS
    rebinding), and any other server allows every host, because authentication protects it.

    Raises:
        ConfigError: an entry is not of the form `host`, `host:port`, `host:*` or `*`.
    """
    entries = _parse_entries("ALLOWED_HOSTS", config.allowed_hosts, authority_of, "host, host:port, host:* or *")
    if entries is None:
        return lambda value: True
    allowed = {Authority(host, ANY_PORT if port is None else port) for host, port in entries}
    loopback_only = not allowed and resolves_to_loopback(config.host)

    def is_allowed(value: bytes) -> bool:
        host = authority_of(value.decode("latin-1"))
        if host is None or host.port == ANY_PORT:
            return False
        if loopback_only:
            return _is_loopback_name(host.host) or host.host == config.host.lower()
        return not allowed or _matches(host, allowed)

    return is_allowed


def report_host_rule(config: ProductionConfig) -> Callable[[bytes], bool]:
    """Return a function that returns whether a Host header is allowed for `/health` and `/metrics`.

    They need no token: where they are protected by listening on loopback only, a web page must not read them through
    DNS rebinding. Loopback names are always allowed, whatever ALLOWED_HOSTS has for a proxy in front.
    """
    if not resolves_to_loopback(config.host):
        return lambda value: True
    is_allowed = host_rule(config)

    def is_loopback_or_allowed(value: bytes) -> bool:
        host = authority_of(value.decode("latin-1"))
        return is_allowed(value) or (host is not None and host.port != ANY_PORT and _is_loopback_name(host.host))

    return is_loopback_or_allowed


def origin_rule(config: ProductionConfig) -> Callable[[bytes, bytes], bool]:
    """Return a function that returns whether an Origin header is allowed in a request with a given Host header.

    Without ALLOWED_ORIGINS, a server allows its own origin, and on a loopback address all loopback origins.

    Raises:
        ConfigError: an entry is not of the form `scheme://host`, `scheme://host:port`, `scheme://host:*` or `*`.
    """
    accepted = "a full origin such as https://app.example.com, or *"
    entries = _parse_entries("ALLOWED_ORIGINS", config.allowed_origins, _origin, accepted)
    if entries is None:
        return lambda origin, host: True
    allowed = {Origin(scheme, host, port or DEFAULT_PORTS.get(scheme)) for scheme, host, port in entries}
    loopback = resolves_to_loopback(config.host)

    def is_allowed(value: bytes, host: bytes) -> bool:
        origin = _origin(value.decode("latin-1"))
        if origin is None or origin.port == ANY_PORT:
            return False
        default_port = DEFAULT_PORTS.get(origin.scheme)
        origin = origin._replace(port=origin.port or default_port)
        if allowed:
            return origin in allowed or origin._replace(port=ANY_PORT) in allowed
        if default_port is None:
            return False
        if loopback and _is_loopback_name(origin.host):
            return True
        own = authority_of(host.decode("latin-1"))
        return own is not None and (own.host, own.port or default_port) == (origin.host, origin.port)

    return is_allowed


def resolves_to_loopback(host: str) -> bool:
    """Return whether all addresses of `host` are loopback addresses; False if it cannot be resolved."""
    try:
        addresses = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback(str(address[4][0])) for address in addresses)


class ReportGuard:
    """ASGI middleware that rejects `/health` and `/metrics` for a Host that `report_host_rule` does not allow (421)."""

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._app = app
        self._host_allowed = report_host_rule(registry.config)
        self._rejected = Rejections(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in REPORTS:
            hosts = [value.rstrip(b" \t") for name, value in scope["headers"] if name == b"host"]
            host = hosts[0] if len(hosts) == 1 else b""
            if len(host) > MAX_HEADER_BYTES or not self._host_allowed(host):
                await _reject_host(self._rejected, scope, send, host)
                return
        await self._app(scope, receive, send)


async def _reject_host(rejected: Rejections, scope: Scope, send: Send, host: bytes | None) -> None:
    rejected("host", "host is not allowed", scope, host=_quoted(host), setting="ALLOWED_HOSTS")
    await http_error(send, 421, f"This server does not answer for host {_quoted(host)}: see ALLOWED_HOSTS.")


async def _answer_preflight(scope: Scope, send: Send, origin: bytes) -> None:
    # Any header is allowed: cookies are not used, and the protocol's own headers are an open set (Mcp-Param-*).
    requested = header_of(scope, b"access-control-request-headers")
    headers = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-max-age", b"600"),
        *([] if requested is None else [(b"access-control-allow-headers", requested)]),
    ]
    send_with_cors = _with_cors_headers(origin, send)
    await send_with_cors({"type": "http.response.start", "status": 204, "headers": headers})
    await send_with_cors({"type": "http.response.body", "body": b""})


def _with_cors_headers(origin: bytes, send: Send) -> Send:
    """Return `send` with CORS headers in the response, so that pages of `origin` can read it."""
    cors = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"mcp-session-id, www-authenticate, retry-after"),
        (b"vary", b"Origin"),
    ]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *cors]}
        await send(message)

    return send_with_cors


def _parse_entries(
    setting: str, entries: tuple[str, ...], parse: Callable[[str], Entry | None], accepted: str
) -> list[Entry] | None:
    """Return the parsed entries of a list, or `None` if one of them is `*`."""
    parsed = [(entry, parse(entry)) for entry in entries if entry != "*"]
    problems = [f"{setting}: {entry!r} is not {accepted}" for entry, value in parsed if value is None]
    if problems:
        raise ConfigError(problems)
    if "*" in entries:
        return None
    return [value for _, value in parsed if value is not None]


def authority_of(text: str) -> Authority | None:
    """Return the host and port of a Host header or an origin, `None` if it is malformed."""
    match = _AUTHORITY.fullmatch(text.lower())
    if match is None:
        return None
    host, port = match.groups()
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    host = host.removesuffix(".")  # an absolute name (RFC 1034, section 3.1), of the same host
    if port is None:
        return Authority(host, None)
    number = ANY_PORT if port == "*" else int(port)
    return Authority(host, number) if number <= 65535 else None


def _origin(text: str) -> Origin | None:
    match = _ORIGIN.fullmatch(text.lower())
    authority = authority_of(match[2]) if match else None
    return Origin(match[1], *authority) if match and authority else None


def _matches(host: Authority, allowed: set[Authority]) -> bool:
    # Without a port the client uses the default of its scheme, which may be https at a proxy in front of the server.
    ports = (*DEFAULT_PORTS.values(), ANY_PORT) if host.port is None else (host.port, ANY_PORT)
    return any(Authority(host.host, port) in allowed for port in ports)


def _is_loopback_name(host: str) -> bool:
    return host == "localhost" or _is_loopback(host.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def _quoted(value: bytes | None) -> str:
    """Return a header value for messages, at most 100 characters of it."""
    return "(none)" if value is None else repr(value.decode("latin-1")[:100])
