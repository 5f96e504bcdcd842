"""Only requests for an allowed host, from an allowed origin and of a bounded size and depth reach the MCP handler.

`Guard` stands at the edge of `/mcp`, before authentication; `InputLimits` behind it, so that nobody without a token
makes the server read a body. A refusal is a JSON-RPC error, which MCP clients show to their user.
"""

from __future__ import annotations

import functools
import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import App
from .config import ConfigError, ProductionConfig

MAX_JSON_DEPTH = 100
"""How deep the arrays and objects of a message may nest. Code that walks arguments may recurse so far."""

MAX_NAME = 400
"""Bytes of a Host or Origin header: a host name has at most 253 (RFC 1035, section 2.3.4)."""

QUIET_SECONDS = 10.0
"""The shortest time between two log lines about refused requests, so that a flood of them floods no log."""

BLANKS = (b" ", b"\t")

INVALID_REQUEST = -32600
PARSE_ERROR = -32700

ANY_PORT = -1
DEFAULT_PORTS = {"http": 80, "https": 443}

Headers = Sequence[tuple[bytes, bytes]]
Entry = TypeVar("Entry", bound=tuple[object, ...])

log = structlog.stdlib.get_logger(__name__)


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


def install(app: App) -> None:
    """Refuses bad entries of the lists at the start, and says where the server trusts everyone.

    Raises:
        ConfigError: an entry of ALLOWED_HOSTS or ALLOWED_ORIGINS is none.
    """
    config = app.config
    problems = []
    for rule in (host_rule, origin_rule):
        try:
            rule(config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if config.transport == "http" and config.auth == "none" and not binds_loopback(config.host):
        app.notices.append(f"there is no authentication: everyone who reaches {config.host} can call every tool")
        if not config.allowed_hosts:
            app.notices.append(
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
        self._refused = RefusalLog()

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
            self._refused("host is not allowed", host=_shown(host), setting="ALLOWED_HOSTS")
            await refuse(send, 421, f"This server does not answer for host {_shown(host)}: see ALLOWED_HOSTS.")
            return
        if origin is None:
            await self._app(scope, receive, send)
            return
        if len(origin) > MAX_NAME or not self._origin_allowed(origin, host):
            self._refused("origin is not allowed", origin=_shown(origin), setting="ALLOWED_ORIGINS")
            await refuse(send, 403, f"Requests from origin {_shown(origin)} are not allowed: see ALLOWED_ORIGINS.")
            return
        if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method") is not None:
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


class InputLimits:
    """Answers 413 for a body above MAX_REQUEST_BYTES and 400 for JSON deeper than `MAX_JSON_DEPTH`.

    The SDK stops at the same size, but in plain text that its client does not show, and parses the 2026 protocol as
    deep as the interpreter's stack goes.
    """

    def __init__(self, config: ProductionConfig, app: ASGIApp) -> None:
        self._limit = config.max_request_bytes
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        declared = _header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._limit:
            await self._too_large(send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                await self._too_large(send)
                return
        # Only a body with that many brackets can be that deep: of ordinary calls none is looked into.
        if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH and deeper_than(MAX_JSON_DEPTH, body):
            await refuse(send, 400, f"The message nests deeper than {MAX_JSON_DEPTH} levels.", code=PARSE_ERROR)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)

    async def _too_large(self, send: Send) -> None:
        await refuse(send, 413, f"The request body is larger than {self._limit} bytes (MAX_REQUEST_BYTES).")


# Every quote outside a string opens one, and the match never gives back: linear in the body, whatever is in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def deeper_than(limit: int, body: bytes | bytearray) -> bool:
    """Whether the arrays and objects of the JSON text `body` nest deeper than `limit`. Well-formed or not, it takes
    about as long as parsing does."""
    brackets = _STRING.sub(b"", body).translate(None, _OTHERS)
    steps = memoryview(brackets.translate(_STEPS)).cast("b")
    return any(map(limit.__lt__, accumulate(steps)))


async def refuse(
    send: Send, status: int, message: str, *headers: tuple[bytes, bytes], code: int = INVALID_REQUEST
) -> None:
    """Answers with an HTTP status and a JSON-RPC error without id, as the MCP transport allows for any refusal."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    body = json.dumps(error).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


class RefusalLog:
    """Logs refused requests, at most one line in `QUIET_SECONDS`, which counts those it held back."""

    def __init__(self) -> None:
        self._held_back = 0
        self._next = 0.0

    def __call__(self, reason: str, **context: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return
        log.warning("request refused", reason=reason, held_back=self._held_back, **context)
        self._held_back, self._next = 0, now + QUIET_SECONDS


async def _preflight(scope: Scope, send: Send, origin: bytes) -> None:
    # The origin is trusted and no cookie is ever looked at, so it may send what it likes: the protocol's
    # own headers alone are an open set (Mcp-Param-*).
    requested = _header(scope, b"access-control-request-headers")
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


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    headers: Headers = scope["headers"]
    return next((value for name, value in headers if name == wanted), None)


def own_host(scope: Scope) -> str | None:
    """The Host header in lower case, None where it is none."""
    text = (_header(scope, b"host") or b"").decode("latin-1")
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
