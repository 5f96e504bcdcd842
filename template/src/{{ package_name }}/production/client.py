"""The tools' one way out: bounded in time and size, with errors that say what failed and keep every secret.

A request passes the links of the features in `ORDER`, and then one attempt over httpx2. Whatever goes wrong on the
way is an `UpstreamError`, whose text is made for the model: what failed, whether trying again helps, when.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from json import JSONDecodeError
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import quote, unquote

import httpx2
import structlog
from mcp.server.mcpserver.exceptions import ToolError

from .config import ConfigError, ProductionConfig
from .meter import Counter, Histogram, Meter

if TYPE_CHECKING:
    from .app import App

ORDER = ("retry", "circuit_breaker")
"""From the tool outwards. The deadline holds for all of it; inside is one attempt with its timeout."""

LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""

MAX_REDIRECTS = 5
MAX_CONNECTIONS = 100
MAX_CONNECT_SECONDS = 5.0

MAX_HOSTS = 64
"""How many hosts get a label and a circuit of their own; a tool that is given URLs can meet any number of them."""

OTHER = "other"

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "QUERY"})
IDEMPOTENT = METHODS - {"POST", "PATCH"}
"""Methods that may be sent again (RFC 9110, 9.2.2; QUERY: RFC 10008)."""

TRANSIENT = frozenset({429, 500, 502, 503, 504})
"""Statuses that a later attempt may not meet again."""

MAX_RETRY_AFTER = 10**9
"""Seconds; no upstream means more than thirty years."""

LATER = "Trying again later may help."
IN_VAIN = "Trying again will not help."


log = structlog.stdlib.get_logger(__name__)


class UpstreamError(ToolError):
    """The upstream gave no usable answer. What a tool does not catch reaches the model as this error's text.

    The text names the upstream's host and never holds a URL's query, a header's value or a body.
    """

    outcome: ClassVar[str] = "error"
    """How the attempt is counted in `mcp_upstream_requests_total`."""

    def __init__(
        self,
        problem: str,
        advice: str = IN_VAIN,
        *,
        host: str,
        status: int | None = None,
        retry_after: float | None = None,
        may_retry: bool = False,
        outage: bool | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.host = host
        """Host of the upstream, with its port where that is not the scheme's own; or the name of a circuit."""
        self.status = status
        """Status of the answer, where there is one."""
        self.retry_after = retry_after
        """Seconds until trying again can help, where they are known."""
        self.may_retry = may_retry
        """Whether the same request is worth another attempt, and safe to send again."""
        self.outage = outage
        """Whether it says that the upstream is down; a 404, for one, says that it works. None if it says neither."""
        self.attempts = 1
        """How often the request was tried."""

    def __str__(self) -> str:
        tried = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.problem}{tried}. {self.advice}"


class UpstreamConnectError(UpstreamError):
    """No connection: the request never left, so that it is safe to send again whatever its method."""

    outcome = "connect_error"


class UpstreamTimeoutError(UpstreamError):
    """No complete answer within the attempt's timeout or the request's deadline."""

    outcome = "timeout"


class UpstreamInterruptedError(UpstreamError):
    """The connection broke before the answer was complete."""

    outcome = "interrupted"


class UpstreamStatusError(UpstreamError):
    """An answer with a status of 400 or more; `response` has the rest of it, for the tool's eyes only."""

    def __init__(self, *args: Any, response: httpx2.Response, **attributes: Any) -> None:
        super().__init__(*args, status=response.status_code, **attributes)
        self.response = response


class UpstreamResponseError(UpstreamError):
    """An answer that cannot be used: too large, not JSON, a redirect that is not followed."""

    outcome = "unusable"


@dataclass(slots=True)
class UpstreamRequest:
    """One request of a tool on its way out; each attempt sends it anew."""

    http: httpx2.Request
    host: str
    group: str
    """The host, or `other` beyond the first `MAX_HOSTS`: safe as a label and as a key."""
    deadline: float
    """When it has to be over, on the event loop's clock."""
    repeatable: bool
    """Whether it may be sent again although it may have arrived."""


UpstreamNext = Callable[[UpstreamRequest], Awaitable[httpx2.Response]]
UpstreamLink = Callable[[UpstreamRequest, UpstreamNext], Awaitable[httpx2.Response]]


def install(app: App) -> None:
    """What every client of the server shares: one exists each time the server runs, and for each client of a test.

    Raises:
        ConfigError: the upstream's key cannot be sent in a header.
    """
    app.upstream_credentials = _credentials(app.config)
    app.upstream_series = UpstreamSeries(app.meter)


class Credentials(NamedTuple):
    """The upstream's key, as it is sent to the origin of `BASE_URL`."""

    name: str
    """Of the header or of the query's parameter."""
    value: str
    in_query: bool = False

    def add_to(self, request: httpx2.Request) -> None:
        """Adds them, unless the tool has given its own."""
        if not self.in_query:
            request.headers.setdefault(self.name, self.value)
        elif self.name not in request.url.params:
            own = f"{quote(self.name, safe='')}={quote(self.value, safe='')}".encode()
            request.url = request.url.copy_with(query=b"&".join(filter(None, (request.url.query, own))))


class Upstream:
    """The configured client. Paths are paths of `BASE_URL`; absolute URLs reach other hosts, without credentials."""

    def __init__(self, app: App, client: httpx2.AsyncClient) -> None:
        config = app.config
        base = httpx2.URL(config.upstream_base_url)
        self._client = client
        self._credentials = app.upstream_credentials
        self._base_url = config.upstream_base_url
        self._base_origin = base.origin
        self._base_host = base.netloc.decode("ascii")
        self._attempt_seconds = config.attempt_timeout_seconds
        self._total_seconds = config.request_timeout_seconds
        self._max_bytes = config.max_response_bytes
        self._groups = {self._base_host}
        self._series = app.upstream_series
        self._send: UpstreamNext = self._attempt
        for name in reversed(ORDER):
            if name in app.upstream_links:
                self._send = _bind(app.upstream_links[name], self._send)

    @classmethod
    @asynccontextmanager
    async def open(cls, app: App) -> AsyncIterator[Upstream]:
        """The client with its connection pool, which closes at the end of the block."""
        attempt = app.config.attempt_timeout_seconds
        soon = min(MAX_CONNECT_SECONDS, attempt / 2)  # before the attempt ends: then it is known that nothing was sent
        async with httpx2.AsyncClient(
            timeout=httpx2.Timeout(attempt, connect=soon, pool=soon),
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            headers={
                "User-Agent": f"{app.about.name}/{app.about.version}",
                "Accept": "application/json, */*;q=0.5",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # else one caller's session is every caller's
        ) as client:
            for hook in app.client_hooks:
                hook(client)
            yield cls(app, client)

    async def get_json(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        path_params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded JSON body of the answer to a GET; arguments and errors as for `request`.

        Raises:
            UpstreamResponseError: the body is not JSON.
        """
        response = await self.request("GET", path, params=params, path_params=path_params, headers=headers)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            explained = _json_error(response, error)
            _log(explained)
            raise explained from None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        path_params: Mapping[str, object] | None = None,
        json: Any = None,
        content: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> httpx2.Response:
        """The answer, its body read, to a request that may take several attempts.

        Args:
            method: POST and PATCH are sent again only when they never left, or with an `idempotency_key`.
            path: A path below `BASE_URL`, or an absolute http(s) URL. What a model wrote belongs into `path_params`.
            params: The query.
            path_params: Values for each `{name}` in `path`; a value stays one segment, whatever is in it.
            json: A body, to be encoded as JSON.
            content: A body as it is.
            headers: Further headers; they win over the configured credentials.
            idempotency_key: Sent as `Idempotency-Key`, to an API that then carries a repeated request out once.

        Raises:
            UpstreamError: there is no answer, or none that can be used; an `UpstreamStatusError` for a status of 400
                or more.
            ToolError: `path` is no URL, or it or a value for it would leave its place.
            KeyError: a `{name}` has no value.
        """
        absolute = path.lower().startswith(("http://", "https://"))
        target = _fill(path, path_params)
        if not absolute:
            target = f"{self._base_url}/{target.lstrip('/')}"
        try:
            http = self._client.build_request(
                method, target, params=params, json=json, content=content, headers=headers
            )
        except httpx2.InvalidURL:
            raise ToolError("the path or URL of the upstream is malformed") from None
        if absolute and (not http.url.host or http.url.userinfo or (http.url.port or 0) > 65535):
            raise ToolError("a URL must have a host, a possible port, and no credentials")
        if idempotency_key is not None:
            http.headers["Idempotency-Key"] = idempotency_key
        if self._credentials and (not absolute or http.url.origin == self._base_origin):
            self._credentials.add_to(http)
        host = http.url.netloc.decode("ascii") if absolute else self._base_host
        request = UpstreamRequest(
            http,
            host=host,
            group=self._group(host),
            deadline=asyncio.get_running_loop().time() + self._total_seconds,
            repeatable=http.method in IDEMPOTENT or idempotency_key is not None,
        )
        try:
            return await self._send(request)
        except UpstreamError as error:
            _log(error)
            raise

    def _group(self, host: str) -> str:
        if host in self._groups:
            return host
        if len(self._groups) >= MAX_HOSTS:
            return OTHER
        self._groups.add(host)
        return host

    async def _attempt(self, request: UpstreamRequest) -> httpx2.Response:
        """Sends `request` once, within its timeout, and records what came of it.

        Exceptions of httpx2 do not go on, not even as a cause: they hold the request with its headers.
        """
        started = asyncio.get_running_loop().time()
        ends = min(started + self._attempt_seconds, request.deadline)
        clock = perf_counter()
        outcome = "error"
        try:
            async with asyncio.timeout_at(ends):
                response = await self._follow(request)
            outcome = f"{response.status_code // 100}xx"
            if response.status_code >= 400:
                raise _status_error(request, response)
            return response
        except (TimeoutError, httpx2.HTTPError) as error:
            seconds = self._total_seconds if ends == request.deadline else self._attempt_seconds
            explained = _transport_error(request, error, seconds)
            if isinstance(error, TimeoutError) and ends - started < min(self._attempt_seconds, self._total_seconds) / 2:
                explained.outage = None  # what a retry had left of the deadline says nothing of the upstream
            outcome = explained.outcome
            raise explained from None
        except UpstreamResponseError as error:
            outcome = error.outcome
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._series.record(request.group, request.http.method, outcome, perf_counter() - clock)

    async def _follow(self, request: UpstreamRequest) -> httpx2.Response:
        """The answer at the end of the redirects, as long as they stay on the same origin."""
        http = request.http
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send(http, stream=True)
            try:
                read = await self._read(request, response)
            finally:
                await response.aclose()
            following = response.next_request
            if following is None:
                return read
            if following.url.origin != http.url.origin:
                raise _unusable(request, "redirected to another origin, which is not followed")
            http = following
        raise _unusable(request, f"redirected more than {MAX_REDIRECTS} times")

    async def _read(self, request: UpstreamRequest, response: httpx2.Response) -> httpx2.Response:
        """`response` with its body, decompressed, of at most `MAX_RESPONSE_BYTES`."""
        parts: list[bytes] = []
        left = self._max_bytes
        async for part in response.aiter_bytes():
            left -= len(part)
            if left < 0:
                raise _unusable(request, f"answered with more than {self._max_bytes} bytes (MAX_RESPONSE_BYTES)")
            parts.append(part)
        headers = response.headers
        if "content-encoding" in headers:
            headers = httpx2.Headers(headers)
            for name in ("content-encoding", "content-length"):
                headers.pop(name, None)
        return httpx2.Response(response.status_code, headers=headers, content=b"".join(parts), request=response.request)


class UpstreamSeries:
    """The client's series; children are bound at their first use and kept."""

    def __init__(self, meter: Meter) -> None:
        self._requests = meter.counter(
            "mcp_upstream_requests_total",
            "Attempts to get an answer from an upstream, by what came of them.",
            ("host", "method", "outcome"),
        )
        self._latency = meter.histogram(
            "mcp_upstream_latency_seconds",
            "Duration of attempts in seconds, their bodies included.",
            ("host",),
            buckets=LATENCY_BUCKETS,
        )
        self._bound: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def record(self, host: str, method: str, outcome: str, seconds: float) -> None:
        key = (host, method if method in METHODS else OTHER, outcome)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = (self._requests(*key), self._latency(host))
        bound[0].inc()
        bound[1].observe(seconds)


def _log(error: UpstreamError) -> None:
    """Says once what a tool gets to see; a tool may well go on after a 404, but hardly after an outage."""
    report = log.warning if error.outage else log.info
    report("upstream request failed", host=error.host, reason=error.problem, attempts=error.attempts)


def _bind(link: UpstreamLink, following: UpstreamNext) -> UpstreamNext:
    async def bound(request: UpstreamRequest) -> httpx2.Response:
        return await link(request, following)

    return bound


def _credentials(config: ProductionConfig) -> Credentials | None:
    """The upstream's key and where it goes, if there is a key.

    Raises:
        ConfigError: the key cannot be sent in a header.
    """
    key = config.upstream_api_key
    if key is None:
        return None
    value = key.get_secret_value().strip()
    if config.upstream_api_key_query:
        return Credentials(config.upstream_api_key_query, value, in_query=True)
    if not (value.isascii() and value.isprintable()):
        raise ConfigError([f"{config.upstream_api_key_env}: must be printable ASCII, for it is sent in a header"])
    name, scheme = config.upstream_api_key_header, config.upstream_api_key_scheme
    if name.lower() != "authorization" or scheme.lower() == "none":
        return Credentials(name, value)
    if scheme.lower() == "basic":  # the key is user:password (RFC 7617)
        value = b64encode(value.encode()).decode()
    return Credentials(name, f"{scheme} {value}")


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def _fill(path: str, values: Mapping[str, object] | None) -> str:
    """`path` with `values` in the place of its placeholders; none of its segments leads upwards.

    A `.` or `..` cannot be quoted: servers and clients resolve it in its encoded form too (WHATWG URL, 4.4).
    """
    if "." in path or "%" in path:
        for segment in re.split(r"[/\\]", path.partition("?")[0]):
            if unquote(segment) in (".", ".."):
                raise ToolError("the path of an upstream must not have . or .. as a segment")

    if values is None:
        return path

    def quoted(match: re.Match[str]) -> str:
        value = str(values[match[1]])
        if value in ("", ".", ".."):
            raise ToolError(f"{match[1]} must not be {value!r}")
        return quote(value, safe="")

    return _PLACEHOLDER.sub(quoted, path)


def _transport_error(request: UpstreamRequest, error: TimeoutError | httpx2.HTTPError, seconds: float) -> UpstreamError:
    host = request.host
    if isinstance(error, httpx2.PoolTimeout):
        return UpstreamConnectError(
            f"All connections are in use, so {host} was not asked",
            "Try again in a few seconds.",
            host=host,
            may_retry=True,
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return UpstreamConnectError(f"{host} cannot be reached", LATER, host=host, may_retry=True, outage=True)
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return UpstreamTimeoutError(
            f"{host} did not answer within {seconds:g} s",
            _later(request),
            host=host,
            may_retry=request.repeatable,
            outage=True,
        )
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return UpstreamInterruptedError(
            f"{host} broke the connection before its answer was complete",
            _later(request),
            host=host,
            may_retry=request.repeatable,
            outage=True,
        )
    if isinstance(error, httpx2.DecodingError):
        return _unusable(request, "answered with a body that cannot be decompressed")
    return UpstreamError(f"The request to {host} could not be sent ({type(error).__name__})", host=host)


def _status_error(request: UpstreamRequest, response: httpx2.Response) -> UpstreamStatusError:
    status = response.status_code
    refused = status in (429, 503)  # the upstream says that it has not carried the request out
    retry_after = parse_retry_after(response.headers.get("Retry-After")) if refused else None
    if status == 401:
        advice = "It does not accept this server's credentials: the server's operator has to see to them."
    elif status not in TRANSIENT:
        advice = IN_VAIN
    elif retry_after is not None:
        advice = f"Try again in {seconds_text(retry_after)}."
    else:
        advice = LATER if refused else _later(request)
    return UpstreamStatusError(
        f"{request.host} answered {status}{_phrase(status)}",
        advice,
        host=request.host,
        response=response,
        retry_after=retry_after,
        may_retry=status in TRANSIENT and request.repeatable,
        outage=status >= 500,
    )


def _json_error(response: httpx2.Response, error: Exception) -> UpstreamResponseError:
    host = response.url.netloc.decode("ascii")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not response.content:
        what = "nothing"
    elif re.fullmatch(r"[a-z]{1,20}/[a-z0-9.+-]{1,60}", media_type) and not media_type.endswith("json"):
        what = media_type
    elif isinstance(error, JSONDecodeError):
        what = f"malformed JSON (line {error.lineno}, column {error.colno})"
    else:
        what = "malformed JSON"
    return UpstreamResponseError(f"{host} answered with {what} where JSON was expected", host=host, outage=False)


def _unusable(request: UpstreamRequest, what: str) -> UpstreamResponseError:
    return UpstreamResponseError(f"{request.host} {what}", host=request.host, outage=False)


def _later(request: UpstreamRequest) -> str:
    return LATER if request.repeatable else "It may have done its work all the same: check before trying again."


def parse_retry_after(value: str | None) -> float | None:
    """The seconds that Retry-After asks for, as a number or as a date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(min(int(value[:12]), MAX_RETRY_AFTER))
    try:
        date = parsedate_to_datetime(value)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # the latter for a year, a day or an offset of twenty digits
        return None
    return max(0.0, min(seconds, MAX_RETRY_AFTER))


def seconds_text(seconds: float) -> str:
    """`seconds`, rounded up, as the model reads them: `1 second`, `20 seconds`."""
    whole = max(1, ceil(seconds))
    return f"{whole} second{'' if whole == 1 else 's'}"


def _phrase(status: int) -> str:
    """The standard's words for `status`; the upstream's own could say anything."""
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""
