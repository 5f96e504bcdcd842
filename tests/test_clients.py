"""Real MCP clients, old and new, reach every tool of two replicas behind a balancer that knows nothing of sessions.

What each client says of itself decides nothing: the scripts in `in_project/` run in environments of their own, and the
TypeScript SDK comes with the MCP project's inspector.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .live_servers import IN_PROJECT, LOCAL, TOKEN, Project, balancing, make_project, node, npm_packages
from .support import run, uv

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]

CALLS = 40
TOOLS = {"echo", "health_check", "get_metrics"}


@dataclass
class Replicas:
    """Two servers behind one port."""

    project: Project
    port: int
    served: dict[int, int]

    @property
    def url(self) -> str:
        return f"http://{LOCAL}:{self.port}/mcp"


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("clients") / "project", "extra")


@pytest.fixture(scope="module")
def replicas(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    logs = tmp_path_factory.mktemp("logs")
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(project.serving(logs / f"{number}.log")) for number in (1, 2)]
        port, served = running.enter_context(balancing(*(server.port for server in servers)))
        yield Replicas(project, port, served)


@pytest.mark.parametrize(
    ("script", "distributions", "mode", "version"),
    [
        ("client_v1", ("mcp==1.12.4", "pydantic<2.12"), "-", "2025-06-18"),
        ("client_v1", ("mcp>=1.28,<2",), "-", "2025-11-25"),
        ("client_v2", (), "legacy", "2025-11-25"),
        ("client_v2", (), "2026-07-28", "2026-07-28"),
        ("client_fastmcp", ("fastmcp>=4.1,<5",), "-", None),
    ],
    ids=["python-sdk-2025-06-18", "python-sdk-1", "python-sdk-2-legacy", "python-sdk-2", "fastmcp"],
)
def test_every_client_gets_all_its_results(
    script: str, distributions: tuple[str, ...], mode: str, version: str | None, replicas: Replicas, tmp_path: Path
) -> None:
    """Every call gets its own answer, and both replicas have answered some."""
    before = dict(replicas.served)
    python: list[str | Path] = [replicas.project.python]
    if distributions:
        wanted = [option for distribution in distributions for option in ("--with", distribution)]
        python = [str(uv()), "run", "--quiet", "--no-project", *wanted, "python"]
    done = run(*python, IN_PROJECT / f"{script}.py", replicas.url, TOKEN, mode, str(CALLS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["answers"] == sorted(f"text {number}" for number in range(CALLS))
    assert set(output["tools"]) >= TOOLS
    assert output["health"]["status"] == "healthy"
    assert output["version"] == version
    assert all(replicas.served[port] - before[port] > CALLS / 4 for port in before)


# --- The TypeScript SDK, by way of the inspector -------------------------------------------------------------


@pytest.fixture(scope="module")
def inspector() -> Path:
    return npm_packages("inspector", "@modelcontextprotocol/inspector@2.12.0", "node@22")


def inspect(packages: Path, home: Path, *arguments: str) -> dict[str, Any]:
    program = packages / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    # It keeps a catalog in the home directory, and starts itself by the name `node`.
    settings = {"HOME": str(home), "PATH": f"{node(packages).parent}:/usr/bin:/bin"}
    done = run(node(packages), program, "--cli", *arguments, cwd=home, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_inspector_lists_and_calls_over_http(inspector: Path, replicas: Replicas, tmp_path: Path) -> None:
    where = (replicas.url, "--transport", "http", "--header", f"Authorization: Bearer {TOKEN}")
    listed = inspect(inspector, tmp_path, *where, "--method", "tools/list")
    assert {tool["name"] for tool in listed["tools"]} >= TOOLS
    called = inspect(inspector, tmp_path, *where, "--method", "tools/call", "--tool-name", "health_check")
    assert called["structuredContent"]["status"] == "healthy"


def test_the_inspector_lists_and_calls_over_stdio(inspector: Path, project: Project, tmp_path: Path) -> None:
    server = {"type": "stdio", "command": str(project.command), "args": ["--transport", "stdio"]}
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"it": server}}), "utf-8")
    where = ("--config", str(tmp_path / "servers.json"), "--server", "it")
    listed = inspect(inspector, tmp_path, *where, "--method", "tools/list")
    assert {tool["name"] for tool in listed["tools"]} >= TOOLS
    called = inspect(
        inspector, tmp_path, *where, "--method", "tools/call", "--tool-name", "echo", "--tool-arg", "text=hello"
    )
    assert called["content"][0]["text"] == "hello"
