"""What other tools read of a project is as they want it: the registry, pre-commit, dev containers, type checkers."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from copier import run_copy

from .conftest import Rendering
from .matrix import Project
from .support import DEFAULT, MINIMAL, run, uv

SCHEMA = "schemas/mcp_registry/v2025_12_11/server.schema.json"
"""The registry's own schema, which `skillsaw` packages."""

CONSUMER = '''
"""What an owner may write against the public names, and nothing that mypy --strict would refuse."""

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from weather_station import production
from weather_station.production import (
    ProductionConfig,
    circuit_breaker,
    get_logger,
    on_shutdown,
    on_startup,
    readiness_check,
    register_modules,
    retry,
    tracer,
    upstream,
)

log = get_logger(__name__)
config: ProductionConfig = ProductionConfig(rate_limit_requests=10)


async def connect() -> None:
    log.info("connected", names=len(production.__all__))


async def find(number: int, ctx: Context[Any, Any]) -> str:
    @retry(ctx, "database", on=ConnectionError)
    @circuit_breaker(ctx, "database", failures=OSError)
    async def query() -> int:
        return number

    with tracer.start_as_current_span("find"):
        found: dict[str, str] = await upstream(ctx).get_json("/items/{number}", path_params={"number": str(number)})
    return f"{found} {await query()}"


def register(server: MCPServer[Any]) -> None:
    server.tool()(find)
    on_startup(server, connect)
    on_shutdown(server, connect)
    readiness_check(server, "database", connect)
    register_modules(server, "weather_station.tools")
'''


def publishable(rendering: Rendering) -> bool:
    """Return whether a project has what the registry reads: all but those of the minimal profile."""
    assert ("server.json" in rendering.files) == (rendering.data.get("profile") != "minimal")
    return "server.json" in rendering.files


def test_the_registry_accepts_server_json(each_rendering: Sequence[Rendering]) -> None:
    """In every variant: names and descriptions come from the answers."""
    schema = importlib.resources.files("skillsaw").joinpath(SCHEMA)
    documents = [str(rendering.first / "server.json") for rendering in each_rendering if publishable(rendering)]
    done = run(
        sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), *documents, cwd=Path(documents[0]).parent
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("description", ["", "x" * 300])
def test_the_registry_accepts_a_description_of_any_length(
    small_template: Path, tmp_path: Path, description: str
) -> None:
    data = DEFAULT | {"project_description": description}
    run_copy(str(small_template), tmp_path, data=data, defaults=True, skip_tasks=True, quiet=True)
    assert 1 <= len(json.loads((tmp_path / "server.json").read_text("utf-8"))["description"]) <= 100


def test_server_json_names_this_package(each_rendering: Sequence[Rendering]) -> None:
    for rendering in filter(publishable, each_rendering):
        server = json.loads(rendering.files["server.json"])
        project = tomllib.loads(rendering.files["pyproject.toml"].decode())["project"]
        (package,) = server["packages"]
        assert package["identifier"] == project["name"]
        assert package["version"] == server["version"] == project["version"]
        assert server["$schema"].split("/")[-2] == "2025-12-11"
        # The registry looks for this in the README of the package on PyPI.
        assert f"mcp-name: {server['name']} " in rendering.files["README.md"].decode()


def test_the_hooks_need_no_download(each_rendering: Sequence[Rendering]) -> None:
    contents = {rendering.files.get(".pre-commit-config.yaml") for rendering in each_rendering} - {None}
    assert contents
    for content in filter(None, contents):
        configured = yaml.safe_load(content)
        assert {repository["repo"] for repository in configured["repos"]} == {"local"}


def test_the_dev_container_has_the_chosen_python(each_rendering: Sequence[Rendering]) -> None:
    """Its schema is in no package that could be pinned; these are the properties that it is used with."""
    for rendering in each_rendering:
        content = rendering.files.get(".devcontainer/devcontainer.json")
        bare = rendering.data.get("profile") == "minimal" or "docker-compose.yml" not in rendering.files
        assert (content is None) == bare
        if content is None:
            continue
        container = json.loads(content)
        assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:3\.1[1-4]-trixie", container["image"])
        assert container["forwardPorts"] == [8000]
        assert container["name"]


@pytest.mark.slow
@pytest.mark.release
def test_the_public_names_are_typed(built: Callable[[str], Project], tmp_path: Path) -> None:
    """Seen from outside the package, as a type checker does only with `py.typed`."""
    consumer = tmp_path / "consumer.py"
    consumer.write_text(CONSUMER)
    done = built("default").uv("run", "--no-sync", "mypy", "--strict", "--cache-dir", str(tmp_path), str(consumer))
    assert done.returncode == 0, done.stdout
    consumer.write_text(CONSUMER.replace("rate_limit_requests=10", "rate_limit_requests=[]"))
    done = built("default").uv("run", "--no-sync", "mypy", "--strict", "--cache-dir", str(tmp_path), str(consumer))
    assert '"rate_limit_requests"' in done.stdout


@pytest.mark.slow
@pytest.mark.release
def test_the_hooks_report_problems_offline(template: Path, tmp_path: Path) -> None:
    """With the environment in place; run by prek, which reads pre-commit's configuration."""
    project = tmp_path / "project"
    run_copy(str(template), project, data=MINIMAL | {"include_ci": True}, defaults=True, skip_tasks=True, quiet=True)
    for command in (["git", "init", "--quiet"], [str(uv()), "sync", "--quiet"], ["git", "add", "--all"]):
        done = run(*command, cwd=project)
        assert done.returncode == 0, done.stderr
    prek = shutil.which("prek", path=str(Path(sys.executable).parent))
    assert prek is not None
    settings = {"UV_OFFLINE": "1", "PREK_HOME": str(tmp_path / "prek"), "PATH": f"{uv().parent}:/usr/bin:/bin"}
    done = run(prek, "run", "--all-files", cwd=project, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (project / "tests" / "test_wrong.py").write_text("import os\n\nx: int = 'one'\n")
    run("git", "add", "--all", cwd=project)
    done = run(prek, "run", "--all-files", cwd=project, **settings)
    assert done.returncode == 1
    assert re.search("ruff check.*Failed", done.stdout)
    assert re.search("mypy.*Failed", done.stdout)
