"""The generated server passes the MCP project's own conformance suite, with every production feature on.

The suite sends no token, so that a balancer before the server adds one; its tools are registered as an owner would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .live_servers import IN_PROJECT, TOKEN, Project, balancing, free_port, make_project, node, npm_packages
from .support import run

pytestmark = pytest.mark.slow

SUITE = "@modelcontextprotocol/conformance"
BASELINE = IN_PROJECT / "conformance-baseline.yml"


@pytest.fixture(scope="module")
def suite() -> Path:
    return npm_packages("conformance", f"{SUITE}@0.2.0-alpha.12", "node@22")


@pytest.fixture(scope="module")
def project(suite: Path, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("conformance") / "project", "conformance")


@pytest.mark.parametrize(
    ("version", "session_mode", "response_mode", "least"),
    [
        pytest.param("2026-07-28", "stateless", "auto", 152, marks=pytest.mark.acceptance),
        pytest.param("2026-07-28", "stateless", "json", 150, marks=pytest.mark.acceptance),
        pytest.param("2025-11-25", "stateful", "auto", 80, marks=pytest.mark.acceptance),
        pytest.param("2026-07-28", "stateless", "auto without the direct path", 152, marks=pytest.mark.release),
        pytest.param("2026-07-28", "stateless", "json without the direct path", 150, marks=pytest.mark.release),
        pytest.param("2026-07-28", "stateless", "sse", 150, marks=pytest.mark.release),
        pytest.param("2025-11-25", "stateful", "sse", 80, marks=pytest.mark.release),
    ],
)
def test_the_server_conforms_to_the_protocol(
    version: str,
    session_mode: str,
    response_mode: str,
    least: int,
    suite: Path,
    project: Project,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """`least` is how many checks there must have been: a suite that runs nothing passes nothing."""
    response_mode, without, _ = response_mode.partition(" without ")
    redis = free_port()
    expected = yaml.safe_load(BASELINE.read_text("utf-8"))[f"{version} {session_mode} {response_mode}"]
    (tmp_path / "baseline.yml").write_text(yaml.safe_dump({"server": expected}), "utf-8")
    settings = {
        "SESSION_MODE": session_mode,
        "RESPONSE_MODE": response_mode,
        "DIRECT": "false" if without else "true",
        "REDIS_URL": f"redis://127.0.0.1:{redis}/0",
        "OTEL_EXPORTER_ENDPOINT": "http://127.0.0.1:9",
    }
    with (
        project.redis(tmp_path / "redis.log", redis),
        project.serving(tmp_path / "server.log", **settings) as server,
        balancing(server.port, headers={"authorization": f"Bearer {TOKEN}"}) as (port, _),
    ):
        done = run(
            node(suite),
            suite / "node_modules" / SUITE / "dist" / "index.js",
            *("server", "--url", f"http://localhost:{port}/mcp", "--suite", "all", "--spec-version", version),
            *("--expected-failures", "baseline.yml"),
            cwd=tmp_path,
        )
        log = server.log()
    passed = re.search(r"Total: (\d+) passed, (\d+) failed", done.stdout)
    assert passed is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[done.stdout.index("=== SUMMARY") :]
    assert int(passed[1]) >= least, passed[0]
    assert "Exception in ASGI application" not in log
    figure(f"conformance {version} {session_mode} {response_mode}: {passed[0].removeprefix('Total: ')}")
