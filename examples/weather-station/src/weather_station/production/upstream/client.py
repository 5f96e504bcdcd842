"""HTTP client for the upstream API with deadlines, size limits and redacted errors.

A request passes the middleware in `ORDER` and then makes one attempt over httpx2. Every failure is an `UpstreamError`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from json import JSONDecodeError
from typing import Any, Protocol
from urllib.parse import quote, unquote

import httpx2
import structlog
from mcp.server.mcpserver.exceptions import ToolError

from ..config import About, ProductionConfig
from ..environment import tls_context
from ..json_values import non_finite
from ..request import compose
from .credentials import credentials_of
from .errors import (
    NO_RETRY,
    RETRY_LATER,
    UpstreamConnectError,
    UpstreamError,
    UpstreamInterruptedError,
    UpstreamResponseError,
    UpstreamStatusError,
    UpstreamTimeoutError,
    Verdict,
    seconds_text,
)

ORDER = ("credentials", "retry", "circuit_breaker", "metrics", "share")
"""Upstream middleware, the outermost first. The request's deadline covers all of it; it surrounds one attempt."""

MAX_REDIRECTS = 5
MAX_CONNECT_SECONDS = 5.0

MAX_GROWTH = 10
"""Limit of the memory of a JSON response's values, in multiples of MAX_RESPONSE_BYTES: small objects take 30 times."""
MAX_MEMORY = "mcp.max_memory"
"""Key of the extensions of a response: bytes that its values may take."""

MAX_KEPT_URL = 1024
"""Characters of a URL whose parsed form is kept."""

MAX_HOSTS = 64
"""Hosts with their own label and circuit. More share `other`: a tool that takes URLs can reach any number of hosts."""

OTHER = "other"
"""Label of everything beyond a bound."""

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "QUERY"})
IDEMPOTENT = METHODS - {"POST", "PATCH"}
"""Methods that are safe to repeat (RFC 9110, section 9.2.2; QUERY: RFC 10008)."""

TRANSIENT = frozenset({429, 500, 502, 503, 504})
"""Statuses after which another attempt may succeed."""

MAX_ENCODINGS = 8
"""How often a path may be percent-encoded."""

MAX_RETRY_AFTER = 10**9
"""Upper bound of a Retry-After header in seconds."""

NON_FINITE = re.compile(rb"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""Found in every JSON text with a number that is not finite as a `float`."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class UpstreamRequest:
    """One request of a tool to the upstream, which every attempt sends."""

    http: httpx2.Request
    host: str
    host_label: str
    """The host, or `other` beyond the first `MAX_HOSTS`: safe as a label and as a key."""
    deadline: float
    """On the event loop's clock."""
    repeatable: bool
    """Whether it is safe to send again after it may have arrived."""
    id: object = field(default_factory=object)
    """Stands for this request and its retries."""
    timeout: float | None = None
    """Seconds that the tool gives the request and each attempt, in place of the settings."""
    at_base: bool = False
    """Whether it goes to the origin of `BASE_URL`, which alone gets credentials."""


UpstreamCallNext = Callable[[UpstreamRequest], Awaitable[httpx2.Response]]
UpstreamMiddleware = Callable[[UpstreamRequest, UpstreamCallNext], Awaitable[httpx2.Response]]


class Circuit(Protocol):
    """One circuit of the circuit breaker."""

    def admit(self, caller: str = "") -> int:
        """Admit a call and return the circuit's generation, or raise `CircuitOpenError`."""

    def record(self, generation: int, verdict: Verdict, caller: str = "", call: object = None) -> None: ...


class Retry(Protocol):
    """Repeats an attempt as the settings say: `upstream.retry.Retries.run`."""

    def __call__(
        self,
        attempt: Callable[[], Awaitable[Any]],
        name: str,
        may_retry: Callable[[BaseException], bool],
        deadline: float,
        /,
    ) -> Awaitable[Any]: ...


Send = Callable[[httpx2.Request], Awaitable[httpx2.Response]]
"""Sends a request once, and returns the response before its body is read."""


@dataclass(slots=True)
class UpstreamParts:
    """What features add to the upstream client."""

    middleware: dict[str, UpstreamMiddleware] = field(default_factory=dict)
    traced: Callable[[Send], Send] = lambda send: send
    """Returns a function that records each request that it sends, where the server has telemetry."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of each request to the origin of `BASE_URL`, which a tool can override."""
    circuit: Callable[[str], Circuit] | None = None
    """Returns the circuit of a name; `None` without circuit breakers."""
    retry: Retry | None = None
    """Repeats attempts; `None` without retries."""
    dependencies: dict[str, object] = field(default_factory=dict)
    """Dependencies beside the upstream API, by name."""


class Upstream:
    """HTTP client of the upstream API.

    Paths are below `BASE_URL`. An absolute URL reaches another host, without the configured credentials and with its
    own circuit.
    """

    def __init__(self, client: httpx2.AsyncClient, config: ProductionConfig, parts: UpstreamParts) -> None:
        base = httpx2.URL(config.upstream_base_url)
        self._client = client
        self._send_http = parts.traced(partial(client.send, stream=True))
        self._credentials = credentials_of(config)
        self._headers = parts.headers
        self._base_url = config.upstream_base_url
        self._base_origin = base.origin
        self._base_host = base.netloc.decode("ascii")
        self._attempt_seconds = config.attempt_timeout_seconds
        self._total_seconds = config.request_timeout_seconds
        self._connect_seconds = connect_seconds(config)
        self._max_bytes = config.max_response_bytes
        self._known_hosts = {self._base_host}
        self._allowed_hosts = frozenset(host.lower() for host in config.upstream_allowed_hosts)
        self._send: UpstreamCallNext = compose(ORDER, parts.middleware, self._attempt)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: ProductionConfig, about: About, parts: UpstreamParts) -> AsyncIterator[Upstream]:
        """Open the client and its connection pool for the duration of the block.

        Args:
            config: Base URL, credentials, timeouts and size limit.
            about: Name and version for the User-Agent header.
            parts: What features add.

        Raises:
            ConfigError: the upstream's key cannot be sent in a header.
            StartError: a middleware's name is not in `ORDER`.
        """
        async with httpx2.AsyncClient(
            verify=tls_context(),
            timeout=timeouts(config.attempt_timeout_seconds, connect_seconds(config)),
            limits=httpx2.Limits(
                max_connections=config.max_connections, max_keepalive_connections=config.max_connections
            ),
            headers={"User-Agent": f"{about.name}/{about.version}", "Accept": "application/json, */*;q=0.5"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # no cookies: callers must not share a session
        ) as client:
            yield cls(client, config, parts)

    async def get_json(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        path_params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (a part of the request, as in httpx2)
    ) -> Any:
        """Send a GET and return the decoded JSON body; arguments and errors as for `request`.

        Raises:
            UpstreamResponseError: the body is not JSON.
        """
        response = await self.request(
            "GET", path, params=params, path_params=path_params, headers=headers, timeout=timeout
        )
        try:
            return parse_json(response)
        except (ValueError, RecursionError) as error:
            upstream_error = _json_error(response, error)
        except UpstreamResponseError as error:
            upstream_error = error
        _log_failed(upstream_error)
        raise upstream_error from None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        path_params: Mapping[str, object] | None = None,
        json: Any = None,
        content: bytes | str | None = None,
        form: Mapping[str, Any] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (a part of the request, as in httpx2)
    ) -> httpx2.Response:
        """Send a request, with the configured retries, and return the response with its body read.

        Args:
            method: POST and PATCH are retried only if they were never sent, or with an `idempotency_key`.
            path: A path below `BASE_URL`, or an absolute http(s) URL. Text from a model belongs in `path_params`.
            params: Query parameters.
            path_params: Values for each `{name}` in `path`, which is one segment, and for each `{name...}`, which is
                one or more, separated by slashes. They are quoted.
            json: A body to encode as JSON.
            content: A body to send as it is.
            form: Fields of a form, URL-encoded or, with `files`, as multipart.
            files: Files of a multipart form by field: name, content and media type.
            headers: Further headers; they override the configured credentials.
            idempotency_key: Sent as `Idempotency-Key`, for APIs that process a repeated request once.
            timeout: Seconds for the request with its retries, and for each attempt, in place of
                `REQUEST_TIMEOUT_SECONDS` and `ATTEMPT_TIMEOUT_SECONDS`. The tool's own timeout remains.

        Raises:
            ValueError: `timeout` is not above 0.
            UpstreamStatusError: the response has a status of 400 or more.
            UpstreamError: any other failure to get a usable response.
            ToolError: `path` is not a path or URL, a value would change its segments, a text has a lone surrogate, or a
                number in `json` is not finite.
            KeyError: `path_params` lacks a `{name}`.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout!r} is not a number of seconds above 0")
        absolute = path.lower().startswith(("http://", "https://"))
        try:
            target = fill_path(path, path_params)
            if not absolute:
                target = f"{self._base_url}/{target.lstrip('/')}"
            if params is not None and "#" not in target:
                # In the text, so that the same query is parsed once.
                target = target.partition("?")[0] + (f"?{httpx2.QueryParams(params)}" if params else "")
                params = None
            url = _parsed(target) if len(target) <= MAX_KEPT_URL else target
            http = self._client.build_request(
                method,
                url,
                params=params,
                json=json,
                content=content,
                data=form,
                files=files,
                headers=headers,
                timeout=httpx2.USE_CLIENT_DEFAULT if timeout is None else timeouts(timeout, self._connect_seconds),
            )
            if idempotency_key is not None:
                http.headers["Idempotency-Key"] = idempotency_key
        except httpx2.InvalidURL:
            raise ToolError("the path or URL of the upstream is malformed") from None
        except UnicodeEncodeError:
            raise ToolError("the request to the upstream has a lone surrogate, or a header that is not ASCII") from None
        except ValueError as error:
            if "float values" not in str(error):
                raise
            raise ToolError("the request to the upstream has NaN or an infinity, which JSON does not have") from None
        if absolute and (not http.url.host or http.url.userinfo or (http.url.port or 0) > 65535):
            raise ToolError("a URL must have a host, a possible port, and no credentials")
        at_base = not absolute or http.url.origin == self._base_origin
        if not at_base and self._allowed_hosts and self._allowed_hosts.isdisjoint(_names(http.url)):
            raise ToolError(f"requests to {http.url.host} are not allowed (UPSTREAM_ALLOWED_HOSTS)")
        if at_base:
            for name, value in self._headers.items():
                http.headers.setdefault(name, value)
            if self._credentials:
                self._credentials.add_to(http)
        host = http.url.netloc.decode("ascii") if absolute else self._base_host
        request = UpstreamRequest(
            http,
            host=host,
            host_label=self._host_label(host),
            deadline=asyncio.get_running_loop().time() + (timeout or self._total_seconds),
            timeout=timeout,
            repeatable=http.method in IDEMPOTENT or idempotency_key is not None,
            at_base=at_base,
        )
        try:
            return await self._send(request)
        except UpstreamError as error:
            _log_failed(error)
            raise

    def _host_label(self, host: str) -> str:
        if host in self._known_hosts:
            return host
        if len(self._known_hosts) >= MAX_HOSTS:
            return OTHER
        self._known_hosts.add(host)
        return host

    async def _attempt(self, request: UpstreamRequest) -> httpx2.Response:
        """Send `request` once, within its timeout.

        Exceptions of httpx2 are replaced and not chained: they hold the request with its headers.
        """
        total = request.timeout or self._total_seconds
        attempt = request.timeout or self._attempt_seconds
        now = asyncio.get_running_loop().time()
        ends = min(now + attempt, request.deadline)
        try:
            async with asyncio.timeout_at(ends):
                response = await self._follow_redirects(request)
        except (TimeoutError, httpx2.HTTPError) as error:
            seconds = total if ends == request.deadline else attempt
            upstream_error = _transport_error(request, error, seconds)
            if isinstance(error, TimeoutError) and ends - now < min(attempt, total) / 2:
                upstream_error.verdict = Verdict.NEUTRAL  # the deadline left too little time for a judgement
            raise upstream_error from None
        if response.status_code >= 400:
            raise _status_error(request, response)
        return response

    async def _follow_redirects(self, request: UpstreamRequest) -> httpx2.Response:
        """Send `request`, follow redirects within its origin, and return the last response."""
        http = request.http
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send_http(http)
            try:
                await self._read(request, response)
            finally:
                await response.aclose()
            redirect = response.next_request
            if redirect is None:
                return response
            if redirect.url.origin != http.url.origin:
                raise _unusable(request.host, "redirected to another origin, which is not followed")
            http = redirect
        raise _unusable(request.host, f"redirected more than {MAX_REDIRECTS} times")

    async def _read(self, request: UpstreamRequest, response: httpx2.Response) -> None:
        """Read the decompressed body of `response`, which has at most `MAX_RESPONSE_BYTES`."""
        parts: list[bytes] = []
        remaining = self._max_bytes
        async for part in response.aiter_bytes():
            remaining -= len(part)
            if remaining < 0:
                raise _unusable(request.host, f"answered with more than {self._max_bytes} bytes (MAX_RESPONSE_BYTES)")
            parts.append(part)
        response._content = b"".join(parts)  # as its own `aread` does, which has no limit
        if response.headers.pop("content-encoding", None) is not None:
            response.headers["content-length"] = str(len(response.content))
        response.extensions = {MAX_MEMORY: MAX_GROWTH * self._max_bytes}  # without the upstream's own reason phrase


def connect_seconds(config: ProductionConfig) -> float:
    """Return the seconds that a request waits for a connection.

    They are fewer than those of an attempt, so that a request which got no connection is known not to have been sent.
    """
    return min(MAX_CONNECT_SECONDS, config.attempt_timeout_seconds / 2)


def timeouts(seconds: float, connect: float) -> httpx2.Timeout:
    """Return the timeouts of an attempt of `seconds`."""
    return httpx2.Timeout(seconds, connect=connect, pool=connect)


def _log_failed(error: UpstreamError) -> None:
    """Log a failed request: an outage at level WARNING, anything else, such as a 404, at INFO."""
    log_error = log.warning if error.verdict is Verdict.FAILURE else log.info
    log_error("upstream request failed", host=error.host, reason=error.problem, attempts=error.attempts)


_PLACEHOLDER = re.compile(r"\{(\w+)(\.\.\.)?\}")
_SEPARATOR = re.compile(r"[/\\]")
_NOT_IN_SEGMENT = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@lru_cache(maxsize=512)
def _parsed(url: str) -> httpx2.URL:
    """Return the parsed form of a URL, which never changes; parsing takes most of the time of making a request."""
    return httpx2.URL(url)


def _names(url: httpx2.URL) -> tuple[str, str]:
    """Return the host of a URL, without and with its port."""
    port = url.port or (443 if url.scheme == "https" else 80)
    host = url.netloc.decode("ascii").removesuffix(f":{port}")  # in brackets, if it is an IPv6 address
    return url.host, f"{host}:{port}"


def fill_path(path: str, values: Mapping[str, object] | None) -> str:
    """Return `path` with its placeholders replaced by the quoted `values`.

    Quoting alone does not keep a value in its segment: nginx, Starlette and WSGI servers decode `%2F` before they
    route, a proxy in front of them may decode once more, and servers resolve the quoted form of dot segments too
    (WHATWG URL, section 4.4). So path and values are judged by their decoded form.

    Raises:
        ToolError: the path has a dot segment, or a value is not exactly one segment, or for `{name...}` one or more.
    """
    fixed = path.partition("?")[0].partition("#")[0]
    filled, query = fixed, path[len(fixed) :]
    if values is not None:
        filled = _PLACEHOLDER.sub(lambda match: quote(_path_value(match, values), safe="/"), fixed)
        query = query and _PLACEHOLDER.sub(lambda match: quote(str(values[match[1]]), safe=""), query)
    if "." in filled or "%" in filled:
        segments = _SEPARATOR.split(_decoded(filled))
        if any(map(_is_dots, segments)):
            raise ToolError("the path of a request to the upstream must not have . or .. as a segment")
        if values is not None and "%" in filled:  # two values, each of them harmless, can together be an encoded slash
            neutral = _PLACEHOLDER.sub(lambda match: re.sub(r"[^/]+", "x", str(values[match[1]])), fixed)
            if len(segments) != len(_SEPARATOR.split(_decoded(neutral))):
                raise ToolError("the values of a path must not make further segments")
    return filled + query


def _path_value(placeholder: re.Match[str], values: Mapping[str, object]) -> str:
    name, several = placeholder.groups()
    value = str(values[name])
    for segment in value.split("/") if several else [value]:
        decoded = _decoded(segment)
        if _NOT_IN_SEGMENT.search(decoded):
            slash = "an encoded slash" if several else "a slash"
            raise ToolError(f"{name} must not contain {slash}, a backslash, a control character or a lone surrogate")
        if not decoded.partition(";")[0] or _is_dots(decoded):
            raise ToolError(f"{name} must not be {segment[:100]!r}")
    return value


def _decoded(text: str) -> str:
    """Return `text` without percent-encoding, however often it is encoded.

    Raises:
        ToolError: it is encoded more than `MAX_ENCODINGS` times, which takes quadratic time.
    """
    for _ in range(MAX_ENCODINGS + 1):
        if "%" not in text:
            return text
        previous, text = text, unquote(text)
        if text == previous:
            return text
    raise ToolError(f"a path must not be percent-encoded more than {MAX_ENCODINGS} times")


def _is_dots(segment: str) -> bool:
    """Return whether servers take a segment for `.` or `..`: Tomcat removes what follows `;`, Windows final dots."""
    name = segment.partition(";")[0]
    return "." in name and not name.strip(". ")


def _transport_error(request: UpstreamRequest, error: TimeoutError | httpx2.HTTPError, seconds: float) -> UpstreamError:
    host = request.host
    if isinstance(error, httpx2.PoolTimeout):
        problem = f"All connections are in use, so no request was sent to {host}"
        return UpstreamConnectError(problem, "Try again in a few seconds.", host=host, may_retry=True)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        problem = f"{host} cannot be reached"
        return UpstreamConnectError(problem, RETRY_LATER, host=host, may_retry=True, verdict=Verdict.FAILURE)
    if isinstance(error, httpx2.DecodingError):
        return _unusable(host, "answered with a body that cannot be decompressed")
    kind: type[UpstreamError]
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        kind, problem = UpstreamTimeoutError, f"{host} did not answer within {seconds:g} s"
    elif isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        kind, problem = UpstreamInterruptedError, f"{host} broke the connection before its answer was complete"
    else:
        return UpstreamError(f"The request to {host} could not be sent ({type(error).__name__})", host=host)
    advice, may_retry = _retry_advice(request), request.repeatable
    return kind(problem, advice, host=host, may_retry=may_retry, verdict=Verdict.FAILURE)


def _status_error(request: UpstreamRequest, response: httpx2.Response) -> UpstreamStatusError:
    status = response.status_code
    not_processed = status in (429, 503)
    retry_after = parse_retry_after(response.headers.get("Retry-After")) if not_processed else None
    if status == 401:
        advice = "It does not accept this server's credentials: its operator has to correct them."
    elif status not in TRANSIENT:
        advice = NO_RETRY
    elif retry_after is not None:
        advice = f"Try again in {seconds_text(retry_after)}."
    else:
        advice = RETRY_LATER if not_processed else _retry_advice(request)
    return UpstreamStatusError(
        f"{request.host} answered {status}{_reason_phrase(status)}",
        advice,
        host=request.host,
        response=response,
        retry_after=retry_after,
        may_retry=status in TRANSIENT and request.repeatable,
        verdict=Verdict.FAILURE if status >= 500 else Verdict.SUCCESS,
    )


def parse_json(response: httpx2.Response, text: str | None = None) -> Any:
    """Return the value of a body that is JSON, or of `text`, a part of it.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
        UpstreamResponseError: it has NaN or an infinity, or a number beyond the range of `float`, or its values would
            take more than `MAX_GROWTH` times MAX_RESPONSE_BYTES.
    """
    body = response.content if text is None else text.encode(errors="surrogatepass")
    if takes_more_than(response.extensions.get(MAX_MEMORY, math.inf), body):
        problem = f"answered with JSON whose values take more than {MAX_GROWTH} times MAX_RESPONSE_BYTES of memory"
        raise _unusable(_host_of(response), problem)
    value = response.json() if text is None else json.loads(text)
    if NON_FINITE.search(response.content) and (found := non_finite(value)):
        raise _unusable(_host_of(response), f"answered with {found}, which JSON does not have")
    return value


_OBJECT, _ARRAY, _ITEM = 232, 72, 40
"""Bytes that CPython takes for an object of JSON with one member, for an array, and for each further value."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def takes_more_than(limit: float, json: bytes) -> bool:
    """Return whether the values of JSON take about more than `limit` bytes, beside their texts."""
    if memory_of(json) <= limit:  # with the brackets in texts
        return False
    memory = end = 0
    for string in _STRING.finditer(json):
        memory += memory_of(json[end : string.start()])
        end = string.end()
        if memory > limit:
            return True
    return memory + memory_of(json[end:]) > limit


def memory_of(json: bytes) -> int:
    """Return about how many bytes the values of JSON without texts take."""
    return _OBJECT * json.count(b"{") + _ARRAY * json.count(b"[") + _ITEM * json.count(b",")


def _json_error(response: httpx2.Response, error: Exception) -> UpstreamResponseError:
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not response.content:
        body = "nothing"
    elif re.fullmatch(r"[a-z]{1,20}/[a-z0-9.+-]{1,60}", media_type) and not media_type.endswith("json"):
        body = media_type
    elif isinstance(error, JSONDecodeError):
        body = f"malformed JSON (line {error.lineno}, column {error.colno})"
    else:
        body = "malformed JSON"
    return _unusable(_host_of(response), f"answered with {body} where JSON was expected")


def _host_of(response: httpx2.Response) -> str:
    return response.url.netloc.decode("ascii")


def _unusable(host: str, problem: str) -> UpstreamResponseError:
    return UpstreamResponseError(f"{host} {problem}", host=host, verdict=Verdict.SUCCESS)


def _retry_advice(request: UpstreamRequest) -> str:
    return RETRY_LATER if request.repeatable else "It may have been carried out: check before trying again."


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, section 10.2.3), or `None` if it is not valid."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(min(int(value[:12]), MAX_RETRY_AFTER))
    try:
        date = parsedate_to_datetime(value)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # OverflowError: a year, day or offset of twenty digits
        return None
    return max(0.0, min(seconds, MAX_RETRY_AFTER))


def _reason_phrase(status: int) -> str:
    """Return the standard's phrase for `status`. The upstream's own phrase is not used: it could be any text."""
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""
