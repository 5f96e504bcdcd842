"""pytest plugin: calls of the server's tools in process or over HTTP, and a recording stand-in for the API.

pyproject.toml loads it, so that every test may ask for the fixtures `api`, `call` and `server`:

    async def test_an_order_is_created(api: Api, call: Call) -> None:
        api.on("POST", "/orders", status=503).then(201, json={"id": 42})
        result = await call("create_order", {"article": "tea"}, caller="alice")
        assert not result.is_error
        assert api.requests[-1].json() == {"article": "tea"}

Settings come from `tests/settings.env`, and from `monkeypatch.setenv` before the first call. The machine's own
variables of the server and of OpenTelemetry are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Set
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, NoReturn, Self, TypedDict, Unpack
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.provider import AccessToken
from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY, CallToolResult, Tool

from .caller import Caller, User, peer_caller
from .config import ANSWERS, ConfigError, ProductionConfig, StartError, known_variables, settings_models
from .sdk import ProductionServer

PROJECT = Path(__file__).parents[3]
PACKAGE = __package__.partition(".")[0]
SETTINGS = PROJECT / "tests" / "settings.env"
PROTOCOL = "2026-07-28"
DEADLINE_SECONDS = 60.0
"""How long to wait for what should happen at once: the first start of a process compiles every library."""

DEFAULTS = {
    "LOG_LEVEL": "INFO",
    "NO_PROXY": "*",
    "OTEL_TRACES_EXPORTER": "none",
    "RATE_LIMIT_REQUESTS": "1000000",
    "RETRY_DELAY_SECONDS": "0.01",
    "RETRY_MAX_DELAY_SECONDS": "0.01",
    "no_proxy": "*",
} | ({} if ANSWERS["config"].get("metrics_port") is None else {"METRICS_PORT": "0"})
"""Settings that keep tests fast and independent of each other; `tests/settings.env` overrides them."""

HINT = "If a tool needs a setting in tests, add a line NAME=value to tests/settings.env."

Tools = Callable[[ProductionServer], None]
"""Registers tools."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Set the environment before any test or tool is imported."""
    environment = pytest.MonkeyPatch()
    early_config.add_cleanup(environment.undo)
    import_module(f"{__package__}.features")  # and with it the settings of all features
    known = known_variables(settings_models()) | {ANSWERS["config"]["upstream_api_key_env"]}
    settings = DEFAULTS | read_settings(SETTINGS)
    _replace_variables(environment, known, settings)
    with contextlib.suppress(Exception):  # no options.py, or a mistake in it, which fails a test and not pytest
        own = import_module(f"{PACKAGE}.options").Settings
        _replace_variables(environment, known_variables([own]), settings)


def _replace_variables(environment: pytest.MonkeyPatch, known: Set[str], settings: Mapping[str, str]) -> None:
    """Remove the variables `known` and those of OpenTelemetry, then set `settings`."""
    for name in list(os.environ):
        if name.upper() in known or name.startswith("OTEL_"):
            environment.delenv(name)
    for name, value in settings.items():
        environment.setenv(name, value)


def read_settings(path: Path) -> dict[str, str]:
    """Return the variables of a file with a line `NAME=value` for each, none if there is no such file.

    Raises:
        pytest.UsageError: a line is neither that nor empty nor a comment.
    """
    settings = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else (), 1):
        match = re.fullmatch(r"\s*(?:#.*|([A-Za-z_]\w*)\s*=\s*(['\"]?)(.*?)\2)?\s*", line)
        if match is None:
            raise pytest.UsageError(f"{path}:{number}: must be NAME=value, a comment that begins with #, or empty")
        if match[1]:
            settings[match[1]] = match[3]
    return settings


class ApiResponse(TypedDict, total=False):
    """How the stand-in responds, beside the status: with one body at most."""

    json: Any
    text: str
    content: bytes
    headers: Mapping[str, str]
    delay: float
    """Seconds to wait before the response."""
    drop: bool
    """Close the connection instead."""


class ApiRequest:
    """A request that the stand-in received."""

    def __init__(self, method: str, target: str, headers: httpx2.Headers, body: bytes) -> None:
        self.method = method
        self.target = target
        """Path and query as sent: percent-encoded, repeated parameters included."""
        self.path = urlsplit(target).path
        self.query = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        """Return the decoded body.

        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.body)


class Route:
    """The responses of the stand-in to one method and path."""

    def __init__(self, method: str, path: str) -> None:
        self._method = method
        self._segments = path.split("/")
        self._responses: list[tuple[int, ApiResponse]] = []

    def then(self, status: int = 200, **response: Unpack[ApiResponse]) -> Route:
        """Add the response to the next request; the last response of a route repeats."""
        self._responses.append((status, response))
        return self

    def matches(self, request: ApiRequest) -> bool:
        sent = [unquote(segment) for segment in request.path.split("/")]
        if (request.method, len(sent)) != (self._method, len(self._segments)):
            return False
        return all(own in (text, f"{{{own[1:-1]}}}") for own, text in zip(self._segments, sent, strict=True))

    def next_response(self) -> tuple[int, ApiResponse]:
        return self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]


class Api:
    """Recording stand-in for the upstream API, on a loopback port while its `with` block runs.

    A request gets the response of the latest route that matches it, and 404 if none does.
    """

    def __init__(self) -> None:
        self.requests: list[ApiRequest] = []
        """All requests in the order of their arrival."""
        self._routes: list[Route] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _ApiServer(("127.0.0.1", 0), partial(_ApiHandler, self._receive, self._closing.wait))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def on(self, method: str, path: str, status: int = 200, **response: Unpack[ApiResponse]) -> Route:
        """Respond to requests of `method` to `path`; a segment `{name}` stands for any text without a slash.

        Example:
            api.on("GET", "/orders/{id}", status=503, headers={"Retry-After": "1"}).then(200, json={"id": 42})
        """
        route = Route(method, path).then(status, **response)
        self._routes.insert(0, route)
        return route

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), name="stand-in", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _receive(self, request: ApiRequest) -> tuple[int, ApiResponse]:
        with self._lock:
            self.requests.append(request)
            route = next((route for route in self._routes if route.matches(request)), None)
            if route is None:
                return 404, {"json": {"error": f"no route for {request.method} {request.path}: see api.on()"}}
            return route.next_response()


class _ApiServer(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has left
            super().handle_error(*arguments)


class _ApiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def __init__(
        self,
        receive: Callable[[ApiRequest], tuple[int, ApiResponse]],
        sleep: Callable[[float], object],
        *connection: Any,
    ) -> None:
        self._receive = receive
        self._sleep = sleep
        super().__init__(*connection)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # whatever the method
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = ApiRequest(self.command, self.path, httpx2.Headers(self.headers.items()), body)
        status, response = self._receive(request)
        self._sleep(response.get("delay", 0.0))
        if response.get("drop"):
            self.close_connection = True
            return
        headers = httpx2.Headers(response.get("headers"))
        content = response.get("content", response.get("text", "").encode())
        if "json" in response:
            headers.setdefault("Content-Type", "application/json")
            content = json.dumps(response["json"]).encode()
        if status not in (204, 304):
            headers["Content-Length"] = str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def log_message(self, *arguments: object) -> None:
        """Write nothing: stderr is for the server's own log."""


class Call:
    """Calls tools through the whole pipeline, in this process.

    Args:
        tools: Registers tools instead of the project's own.
        settings: Fields of `ProductionConfig`; they override the environment.
    """

    def __init__(self, tools: Tools | None = None, **settings: Any) -> None:
        self._create = partial(create_server, tools, **settings)

    @cached_property
    def server(self) -> ProductionServer:
        """The server's object, for `meter` and the like; its first use creates it."""
        return self._create()

    async def __call__(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: str | None = None,
        scopes: Sequence[str] = (),
        tier: str | None = None,
        tenant: str | None = None,
        progress: Callable[[float, float | None, str | None], object] | None = None,
    ) -> CallToolResult:
        """Call a tool and return its result.

        Limits and circuits last for one test.

        Args:
            tool: Name of the tool.
            arguments: Its arguments.
            caller: Client id of the access token that the call bears; without it the call comes from stdio.
            scopes: Scopes of that token.
            tier: Tier of that caller.
            tenant: Tenant of that caller.
            progress: Gets what the tool reports: how far it is, of how much, and a message.

        Raises:
            ValueError: `caller` is given, and this project has no feature that identifies callers.

        Example:
            result = await call("get_weather", {"city": "Lisbon"}, caller="alice")
        """
        given = progress or (lambda *report: None)

        async def report(progress: float, total: float | None, message: str | None) -> None:
            given(progress, total, message)

        async with self._client(caller, scopes, tier, tenant) as client:
            return await client.call_tool(tool, dict(arguments or {}), progress_callback=report if progress else None)

    async def list_tools(self, *, caller: str | None = None, scopes: Sequence[str] = ()) -> list[Tool]:
        """Return the tools that a caller sees.

        Args:
            caller: Client id of the access token, as for a call.
            scopes: Scopes of that token.

        Raises:
            ValueError: `caller` is given, and this project has no feature that identifies callers.
        """
        async with self._client(caller, scopes) as client:
            return (await client.list_tools()).tools

    @contextlib.asynccontextmanager
    async def _client(
        self, caller: str | None, scopes: Sequence[str], tier: str | None = None, tenant: str | None = None
    ) -> AsyncIterator[Client]:
        user = None
        if caller is not None:
            if self.server.registry.identify is peer_caller:
                raise ValueError("caller= has no effect: this project has no feature that identifies callers")
            sender = Caller(caller, client=caller, scopes=frozenset(scopes), tier=tier, tenant=tenant)
            user = User(AccessToken(token=f"token of {caller}", client_id=caller, scopes=list(scopes)), sender)
        token = auth_context_var.set(user)
        try:
            async with Client(self.server) as client:
                yield client
        finally:
            auth_context_var.reset(token)


class Endpoint:
    """Client of a server over HTTP."""

    @cached_property
    def base_url(self) -> str:
        """URL of the server, without a slash at its end."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """URL of the MCP endpoint."""
        return f"{self.base_url}/mcp"

    @cached_property
    def client(self) -> httpx2.Client:
        # An empty TLS context, because loading the certificates of the system takes 30 ms.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx2.Client(base_url=self.base_url, timeout=DEADLINE_SECONDS, trust_env=False, verify=context)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Return the response to a GET, such as of `/readyz`."""
        return self.client.get(path, headers=headers)

    def send(
        self, method: str, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send one MCP request and return the HTTP response."""
        params = params or {}
        meta = {PROTOCOL_VERSION_META_KEY: PROTOCOL, CLIENT_CAPABILITIES_META_KEY: {}, **params.get("_meta", {})}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        own = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": PROTOCOL, "Mcp-Method": method}
        if "name" in params:
            own["Mcp-Name"] = params["name"]
        return self.client.post("/mcp", json=message, headers={**own, **(headers or {})})

    def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> CallToolResult:
        """Call a tool and return its result.

        Raises:
            ValueError: the response is an error instead of a result.
        """
        response = self.send("tools/call", {"name": tool, "arguments": dict(arguments or {})}, headers)
        lines = response.text.splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        message = json.loads(events[-1] if events else response.text)
        if "result" not in message:
            raise ValueError(f"HTTP {response.status_code}: {message['error']['message']}")
        return CallToolResult.model_validate(message["result"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if "client" in vars(self):
            self.client.close()


class Server(Endpoint):
    """An HTTP server on a loopback port, in a thread of this process; its first use starts it.

    Args:
        tools: Registers tools instead of the project's own.
        settings: Fields of `ProductionConfig`; they override the environment.
    """

    def __init__(self, tools: Tools | None = None, **settings: Any) -> None:
        self._create = partial(create_server, tools, **settings)
        self._stop: Callable[[], None] = lambda: None

    @cached_property
    def base_url(self) -> str:
        from ..server import create_app
        from .serve import connections, lifecycle, startup

        server = self._create()
        application = create_app(server)
        startup.require_http_allowed(server.registry)
        listener = connections.bind("127.0.0.1", 0)
        http = lifecycle.HttpServer(server, application)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                http.run([listener])
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="server", daemon=True)

        def stop() -> None:
            http.stop()
            thread.join(DEADLINE_SECONDS)
            listener.close()

        self._stop = stop
        thread.start()
        wait_for(lambda: http.started or not thread.is_alive())
        if failures:
            pytest.fail(f"the server does not start: {failures[0]}\n{HINT}", pytrace=False)
        self._addresses = {urlsplit(url).path: url for url in server.registry.http.addresses.values()}
        return connections.base_url(listener)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Return the response to a GET; that of `/metrics` also if it has a port of its own."""
        return super().get(urljoin(self.base_url, self._addresses.get(path, path)), headers)

    def __exit__(self, *exception: object) -> None:
        self._stop()
        super().__exit__()


class Process(Endpoint):
    """The server's command in a process of its own, until its `with` block ends.

    Args:
        options: Options of the command.
        tools: A function `path.py:register` instead of the project's own tools.
        settings: Environment variables.
    """

    def __init__(self, *options: str, tools: str | None = None, **settings: object) -> None:
        program = ["-m", PACKAGE] if tools is None else ["-c", _WITH_OTHER_TOOLS, tools]
        descriptor, self._log = tempfile.mkstemp()
        self._process = subprocess.Popen(  # noqa: S603 (this project's own command)
            [sys.executable, *program, "--host", "127.0.0.1", "--port", "0", *options],
            cwd=PROJECT,
            env={**os.environ, **{name: str(value) for name, value in settings.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
        )
        os.close(descriptor)

    @cached_property
    def base_url(self) -> str:
        wait_for(lambda: "/mcp" in self.log() or self._process.poll() is not None)
        address = re.search(r"http://[^/\s]+(?=/mcp)", self.log())
        return address[0] if address else self._fail()

    def exchange(self, *messages: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Send JSON-RPC messages over stdio, close the input, and return what the server wrote until its end."""
        lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
        output, _ = self._process.communicate(lines.encode(), DEADLINE_SECONDS)
        return [json.loads(line) for line in output.splitlines()] if self._process.returncode == 0 else self._fail()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def exit_status(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self._process.wait(DEADLINE_SECONDS)

    def log(self) -> str:
        """Return what the server has written to stderr."""
        return Path(self._log).read_text("utf-8")

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        Path(self._log).unlink()
        super().__exit__()

    def _fail(self) -> NoReturn:
        status = self._process.returncode
        pytest.fail(f"the server ended with status {status}:\n\n{self.log()}\n{HINT}", pytrace=False)


_WITH_OTHER_TOOLS = f"""
import sys
from runpy import run_path
from {PACKAGE} import __main__, server
sys.modules["{PACKAGE}.options"] = None
path, _, function = sys.argv.pop(1).rpartition(":")
server.register = run_path(path)[function]
sys.exit(__main__.main())
"""


def create_server(tools: Tools | None = None, **settings: Any) -> ProductionServer:
    """Return the server as configured by the environment and `settings`; fail the test if it cannot start."""
    from .. import server  # here, so that a mistake in it fails a test and not pytest

    try:
        neutral = {"transport": "http", "host": "127.0.0.1", "port": 0, "upstream_auth": "api_key"}  # no token endpoint
        config = ProductionConfig.load(**(neutral | settings))
        with pytest.MonkeyPatch.context() as replaced:
            if tools is not None:
                replaced.setattr(server, "register", tools)
                replaced.setitem(sys.modules, f"{PACKAGE}.options", None)
            return server.create_server(config)
    except (ConfigError, StartError) as error:
        pytest.fail(f"the server does not start: {error}\n{HINT}", pytrace=False)


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Return as soon as `condition()` is true; fail the test if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {condition}")
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _tests_of_the_template(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `tests/settings.env` out of `tests/production`, which runs without the owner's tools."""
    if request.path.is_relative_to(PROJECT / "tests" / "production"):
        for name in read_settings(SETTINGS):
            monkeypatch.delenv(name)
        for name, value in DEFAULTS.items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def api() -> Iterator[Api]:
    """Recording stand-in for the upstream API; `call` and `server` use it as BASE_URL."""
    with Api() as stand_in:
        yield stand_in


@pytest.fixture
def call(api: Api, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`await call(tool, arguments)` calls a tool of this project in process."""
    monkeypatch.setenv("BASE_URL", api.url)
    return Call()


@pytest.fixture
def server(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """This project's server over HTTP: `server.call(tool, arguments)`, `server.get("/metrics")`, `server.url`."""
    monkeypatch.setenv("BASE_URL", api.url)
    with Server() as running:
        yield running
