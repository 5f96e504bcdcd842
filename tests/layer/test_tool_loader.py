"""Tool loader: a file adds tools, and a mistake in one is one line before the server serves.

Cases with files are real starts of the command, with a copy of the package whose `tools/` has the files of the case.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from harness import DEADLINE_SECONDS, Register, Serve, config, copy_package, environment
from stand_in import stand_in
from weather_station.__main__ import SLUG
from weather_station.production.config import StartError
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.tool_loader import register_modules
from weather_station.production.upstream.errors import UpstreamError, UpstreamStatusError, UpstreamTimeoutError, Verdict
from weather_station.server import create_server

FINDING = """
from ..production import register_modules


def register(server):
    register_modules(server, __name__)
"""
"""The `tools/__init__.py` of a new project."""
GREET = '''
async def greet(name: str) -> str:
    """Greets by name."""
    return f"Hello, {name}!"

def register(server):
    server.tool()(greet)
'''


def registering(function: str, before: str = "") -> str:
    """Return a module whose one tool is `function`, named `ask`; it begins in the second line after `before`."""
    return f"{before}\n{function}\n\ndef register(server):\n    server.tool()(ask)\n"


def start(directory: Path, modules: Mapping[str, str], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `--check` in `directory` with these modules, by name, as the only tools."""
    copy_package(directory, {"__init__": FINDING, **modules})
    with stand_in({}) as api:
        # OTEL_SDK_DISABLED: the answers may name a collector
        neutral = {"BASE_URL": api.url, "LOG_FORMAT": "console", "OTEL_SDK_DISABLED": "true"}
        return subprocess.run(
            [sys.executable, "-m", "weather_station", "--check", "--transport", "stdio"],
            cwd=directory,
            env=environment(**neutral | settings) | {"PYTHONPATH": str(directory)},
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * DEADLINE_SECONDS,
        )


def test_a_new_file_adds_a_tool(tmp_path: Path) -> None:
    done = start(tmp_path, {"greet": GREET, "_helpers": "raise RuntimeError('not imported')"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("^tools +.*greet", done.stdout, re.MULTILINE)


def test_a_custom_route_is_served_beside_the_endpoint(serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        async def hook(request: Request) -> Response:
            return PlainTextResponse(await request.body())

        server.custom_route("/hook", ["POST"])(hook)

    with serve(register) as server:
        response = server.client.post(f"{server.base}/hook", content="an event")
        assert (response.status_code, response.text) == (200, "an event")
        assert server.get("/hook").status_code == 405


ROUTE_FAILURES = {
    "down": (UpstreamError("secret.example failed", host="secret.example", verdict=Verdict.FAILURE), 503, None),
    "busy": (UpstreamError("x is busy", host="secret.example", retry_after=6.2, verdict=Verdict.NEUTRAL), 503, "7"),
    "rejected": (
        UpstreamStatusError("it answered 404", host="a", response=httpx2.Response(404)),
        502,
        None,
    ),
    "timeout": (UpstreamTimeoutError("x was slow", host="secret.example", verdict=Verdict.FAILURE), 503, None),
}
"""What a route's function raises, and the status and Retry-After of the answer."""


@pytest.mark.parametrize("case", ROUTE_FAILURES)
def test_a_route_whose_upstream_fails_says_whether_to_send_it_again(
    case: str, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    error, status, retry_after = ROUTE_FAILURES[case]

    async def hook(request: Request) -> Response:
        raise error

    with serve(lambda server: server.custom_route("/hook", ["POST"])(hook)) as server:
        response = server.client.post(f"{server.base}/hook")
        assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
        assert "secret.example" not in response.text
    log = capfd.readouterr().err
    assert "upstream of a route failed" in log
    assert str(error) in log
    assert "Traceback" not in log


MISTAKES = {
    "no register": ("", r"\S+ask_\d+\.py: it has no register\(server\)\. Add one \(docs/tools\.md\), or begin .*"),
    "a missing library": (
        "import no_such_library",
        r"\S+ask_\d+\.py:1: ModuleNotFoundError: No module named 'no_such_library'\. If it is .* uv add",
    ),
    "a syntax error": ("def ask(:", r"\S+ask_\d+\.py:1: SyntaxError: .+"),
    "a failing register": (
        "def register(server):\n    server.tol()",
        r"\S+ask_\d+\.py:2: AttributeError: .*'tol'.*",
    ),
    "no type hint": (
        registering("async def ask(city) -> str: ..."),
        r"\S+ask_\d+\.py:2: tool ask: parameter city has no type hint; add one, from which its JSON schema is made",
    ),
    "a variable number of arguments": (
        registering("async def ask(**options: str) -> str: ..."),
        r"\S+ask_\d+\.py:2: tool ask: \*\*options: str has no JSON schema; declare each parameter by name",
    ),
    "a type without schema": (
        registering("async def ask(when: Lock) -> str: ...", "from asyncio import Lock"),
        r"\S+ask_\d+\.py:2: tool ask: parameter when is of type asyncio\.locks\.Lock, which has no JSON schema; use .*",
    ),
    "an unknown type": (
        registering("async def ask(when: 'Moment') -> str: ..."),
        r"\S+ask_\d+\.py:2: tool ask: Unable to evaluate type annotations .*",
    ),
    "a reserved name": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='get_metrics')"),
        r"\S+ask_\d+\.py:2: tool get_metrics: the name is reserved for a tool of the production layer; choose .*",
    ),
    "a name that is taken": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='greet')"),
        r"\S+ask_\d+\.py:2: tool greet: \S+ask\.py:2 has the same name; rename one of them",
    ),
    "a name outside the specification": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='ask me')"),
        r"\S+ask_\d+\.py:2: tool ask me: a name has 1 to 128 letters, digits, .*",
    ),
    "an async register": (
        "async def register(server): ...",
        r"\S+ask_\d+\.py:1: register is async, but nothing awaits it; make it a plain def",
    ),
    "a register with a yield": (
        "def register(server):\n    yield",
        r"\S+ask_\d+\.py:1: register is a generator, which nothing runs; remove the yield",
    ),
    "an async register with a yield": (
        "async def register(server):\n    yield",
        r"\S+ask_\d+\.py:1: register is a generator, which nothing runs; remove the yield",
    ),
    "a module that ends the process": (
        "import argparse\nargparse.ArgumentParser(usage='none').exit(3)",
        r"\S+ask_\d+\.py:2: SystemExit: 3",
    ),
    "a register that ends the process": (
        "def register(server):\n    raise SystemExit('no key')",
        r"\S+ask_\d+\.py:2: SystemExit: no key",
    ),
    "structured output without a return type": (
        registering("async def ask(): ...").replace("tool()", "tool(structured_output=True)"),
        r"\S+ask_\d+\.py:2: tool ask: .*return annotation required for structured output",
    ),
}


def test_every_mistake_is_one_line_with_its_place(tmp_path: Path) -> None:
    """Of one start: all mistakes are shown at once."""
    modules = {f"ask_{number}": source for number, (source, _) in enumerate(MISTAKES.values(), start=10)}
    done = start(tmp_path, modules | {"ask": GREET})
    assert done.returncode == 1, done.stdout
    for line, (_, expected) in zip(done.stderr.splitlines(), MISTAKES.values(), strict=True):
        assert re.fullmatch(f"{SLUG}: {expected}", line), line


def test_the_traceback_of_a_mistake_is_logged_at_debug(tmp_path: Path) -> None:
    done = start(tmp_path, {"ask": "import no_such_library"}, LOG_LEVEL="DEBUG")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.needs("serve.definitions")
def test_check_advises_how_to_improve_a_tool(tmp_path: Path) -> None:
    done = start(tmp_path, {"ask": registering("def ask(city: str): ...")})
    assert done.returncode == 0
    advice = "\n".join(line for line in done.stdout.splitlines() if line.startswith("advice"))
    for words in ("ask is a plain def", "ask has no docstring", "ask has no return type"):
        assert words in advice


async def test_the_modules_of_a_package_register_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_tools"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("b", "a"):
        source = f"async def {name}() -> str: ...\ndef register(server): server.tool()({name})\n"
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    server = create_server(config())
    register_modules(server, "some_tools")
    async with Client(server) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
    assert names[-2:] == ["a", "b"]
    with pytest.raises(StartError, match=r"tool a: .* has the same name"):
        register_modules(server, "some_tools")


PLACE = r"\S*test_tool_loader\.py:\d+"


async def add(a: int, b: int) -> int:
    return a + b


def _duplicate(server: ProductionServer) -> None:
    server.tool()(add)
    server.tool(name="add")(lambda: 1)


def _unusable(server: ProductionServer) -> None:
    async def broken(_hidden: int) -> None: ...

    server.tool()(broken)


def _nameless(server: ProductionServer) -> None:
    server.tool()(lambda: 1)


def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does not await what it wraps."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def awaiting(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return wrapper


@plain
async def hidden(city: str) -> str:
    return city


@awaiting
async def awaited(city: str) -> str:
    return city


async def stream(city: str) -> AsyncIterator[str]:
    yield city


class Nameless:
    async def __call__(self) -> str:
        return "Bern"


def test_an_async_function_behind_an_async_decorator_is_registered() -> None:
    server = create_server(config())
    server.tool()(awaited)
    server.resource("test://{city}")(awaited)
    server.prompt()(awaited)


@pytest.mark.parametrize(
    ("register", "problem"),
    [
        (lambda server: server.tool()(hidden), rf"{PLACE}: tool hidden: it is async, but its decorator is a plain def"),
        (
            lambda server: server.resource("test://{city}")(hidden),
            rf"{PLACE}: resource \S+: it is async, .*",
        ),
        (lambda server: server.prompt()(hidden), rf"{PLACE}: prompt hidden: it is async, but its decorator .*"),
        (lambda server: server.completion()(plain(awaited)), rf"{PLACE}: completion: it must be async def"),
        (lambda server: server.tool()(stream), rf"{PLACE}: tool stream: it is an async generator; return one value .*"),
        (lambda server: server.resource("test://{town}")(awaited), rf"{PLACE}: resource \S+: Mismatch .*"),
    ],
)
def test_a_function_that_would_never_be_awaited_stops_the_start(register: Register, problem: str) -> None:
    with pytest.raises(StartError, match=f"^{problem}") as caught:
        register(create_server(config()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fn", [functools.partial(awaited, "Bern"), functools.partial(add, 1, 2), Nameless()])
def test_an_object_that_is_no_function_stops_the_start(fn: Callable[..., Any]) -> None:
    server = create_server(config())
    registering: list[Callable[[], object]] = [
        lambda: server.add_tool(fn, "city"),
        lambda: server.resource("test://city")(fn),
        lambda: server.prompt("city")(fn),
    ]
    for register in registering:
        with pytest.raises(StartError, match=r"city: it is no function; register a def or async def that calls it$"):
            register()


@pytest.mark.parametrize("kind", ["resource", "prompt"])
def test_a_second_handler_of_the_same_name_stops_the_start(kind: str) -> None:
    server = create_server(config())
    register = server.resource("test://{city}") if kind == "resource" else server.prompt("city")
    register(awaited)
    with pytest.raises(StartError, match="has the same name; rename one of them"):
        register(awaited)


@pytest.mark.parametrize(
    ("register", "problem"),
    [
        (_duplicate, rf"{PLACE}: tool add: {PLACE} has the same name; rename one of them"),
        (_unusable, rf"{PLACE}: tool broken: .*_hidden.*"),
        (_nameless, rf"{PLACE}: tool <lambda>: .*server\.tool\(name=\.\.\.\)"),
    ],
)
def test_a_function_that_cannot_be_a_tool_stops_the_start_with_one_line(register: Register, problem: str) -> None:
    with pytest.raises(StartError) as caught:
        register(create_server(config()))
    assert re.fullmatch(problem, str(caught.value)), caught.value
