"""Tools: one file adds one, and what is wrong with it is one line before the server serves.

Each case is a real start of the command, in a copy of this package whose `tools/` holds the files of the case.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mcp import Client
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from weather_station.__main__ import SLUG
from weather_station.production.registry import ProductionServer
from weather_station.production.config import StartError
from weather_station.production.serve.tool_loader import register_modules
from weather_station.server import create_server

from harness import PROJECT, Running, command, config, environment
from stand_in import stand_in

TOOLS = Path("weather_station") / "tools"
FINDING = """
from ..production import register_modules


def register(server):
    register_modules(server, __name__)
"""
"""What copying seeds; the project's own may be another."""
GREET = '''
async def greet(name: str) -> str:
    """Greets by name."""
    return f"Hello, {name}!"

def register(server):
    server.tool()(greet)
'''


def registering(function: str, before: str = "") -> str:
    """A module whose one tool is `function`, named `ask`; it begins in the second line after `before`."""
    return f"{before}\n{function}\n\ndef register(server):\n    server.tool()(ask)\n"


def start(directory: Path, modules: Mapping[str, str], **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs `--check` in `directory` with these modules, by name, as the only tools."""
    hidden = ("tools", "__pycache__")
    shutil.copytree(PROJECT / "src" / TOOLS.parent, directory / TOOLS.parent, ignore=shutil.ignore_patterns(*hidden))
    (directory / TOOLS).mkdir()
    for name, source in {"__init__": FINDING, **modules}.items():
        (directory / TOOLS / f"{name}.py").write_text(source)
    with stand_in({}) as url:
        neutral = {"BASE_URL": url, "OTEL_SDK_DISABLED": "true"}  # the answers may name a collector
        return subprocess.run(  # noqa: S603 (this project's own command)
            command(None, "--check", "--transport", "stdio"),
            cwd=directory,
            env=environment(**neutral | settings) | {"PYTHONPATH": str(directory)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def test_a_new_file_is_a_new_tool(tmp_path: Path) -> None:
    done = start(tmp_path, {"greet": GREET, "_helpers": "raise RuntimeError('a leading _ hides this')"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("^tools +.*greet", done.stdout, re.MULTILINE)


def test_a_route_of_a_tool_is_served_beside_the_endpoint(
    serve: Callable[..., AbstractContextManager[Running]],
) -> None:
    def register(server: ProductionServer) -> None:
        async def hook(request: Request) -> Response:
            return PlainTextResponse(await request.body())

        server.custom_route("/hook", ["POST"])(hook)

    with serve(register) as server:
        answer = server.client.post(f"{server.base}/hook", content="an event")
        assert (answer.status_code, answer.text) == (200, "an event")
        assert server.client.get(f"{server.base}/hook").status_code == 405


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
        r"\S+ask_\d+\.py:2: tool ask: parameter city has no type hint, which is its schema; add one",
    ),
    "any number of arguments": (
        registering("async def ask(**options: str) -> str: ..."),
        r"\S+ask_\d+\.py:2: tool ask: \*\*options: str cannot be described to a model; give every parameter a name",
    ),
    "a type without schema": (
        registering("async def ask(when: Lock) -> str: ...", "from asyncio import Lock"),
        r"\S+ask_\d+\.py:2: tool ask: parameter when is of type asyncio\.locks\.Lock, which has no JSON schema; use .*",
    ),
    "a type that is not there": (
        registering("async def ask(when: 'Moment') -> str: ..."),
        r"\S+ask_\d+\.py:2: tool ask: Unable to evaluate type annotations .*",
    ),
    "a reserved name": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='get_metrics')"),
        r"\S+ask_\d+\.py:2: tool get_metrics: the name belongs to the production layer's own tool; give it another one",
    ),
    "a name that is taken": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='greet')"),
        r"\S+ask_\d+\.py:2: tool greet: \S+ask\.py:2 has that name already; give one of them another name",
    ),
    "a name outside the specification": (
        registering("async def ask() -> str: ...").replace("tool()", "tool(name='ask me')"),
        r"\S+ask_\d+\.py:2: tool ask me: a name has 1 to 128 letters, digits, .*",
    ),
    "structured output without a return type": (
        registering("async def ask(): ...").replace("tool()", "tool(structured_output=True)"),
        r"\S+ask_\d+\.py:2: tool ask: .*return annotation required for structured output",
    ),
}


def test_every_mistake_is_one_line_that_says_where(tmp_path: Path) -> None:
    """All of one start, the good module's tool among them: whoever has made several mistakes sees them at once."""
    modules = {f"ask_{number}": source for number, (source, _) in enumerate(MISTAKES.values(), start=10)}
    done = start(tmp_path, modules | {"ask": GREET})
    assert done.returncode == 1, done.stdout
    for said, (_, expected) in zip(done.stderr.splitlines(), MISTAKES.values(), strict=True):
        assert re.fullmatch(f"{SLUG}: {expected}", said), said


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    done = start(tmp_path, {"ask": "import no_such_library"}, LOG_LEVEL="DEBUG")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_check_tells_what_would_make_a_tool_better(tmp_path: Path) -> None:
    done = start(tmp_path, {"ask": registering("def ask(city: str): ...")})
    assert done.returncode == 0
    advice = "\n".join(line for line in done.stdout.splitlines() if line.startswith("advice"))
    for words in ("ask is a plain def", "ask has no docstring", "ask has no return type"):
        assert words in advice


async def test_a_package_of_tools_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the file names', so that every start registers alike."""
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
    with pytest.raises(StartError, match=r"tool a: .* has that name already"):
        register_modules(server, "some_tools")
