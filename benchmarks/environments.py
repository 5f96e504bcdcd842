"""What the benchmark needs beside this repository: generated projects and FastMCP, each with its own environment.

They are kept in a cache directory. The projects are rendered anew each time, so that what is measured is the template
in the working tree, and, for a comparison, that of a commit.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.support import EVERYTHING

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = {"project_name": "Benchmark Server", "enable_metrics_tool": "true", "include_ci": "false"}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "project": {},
    "redis": {"rate_limit_backend": "redis"},
    "permissions": {"enable_authorization": "true", "enable_audit": "true"},
    "everything": EVERYTHING,
}
"""The further answers of each generated project, by the name of its environment."""
PACKAGE = "benchmark_server"
TEMPLATE_PATHS = ("copier.yml", "interview", "template", "hooks", "packages")
"""What of this repository belongs to the template."""
PYTHON = ".".join(map(str, sys.version_info[:2]))
TOOLS = """import _tools


def register(server):
    _tools.register(lambda function, name: server.add_tool(function, name=name))
"""
"""The project's `tools/`, which belongs to its owner: here the benchmark."""
FASTMCP = ("fastmcp>=4.2,<5", "uvloop", "httptools", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")

NODE_PACKAGES = {
    "@modelcontextprotocol/server": "2.4.0",
    "@modelcontextprotocol/node": "2.1.2",
    "@cyanheads/mcp-ts-core": "0.10.17",
    "node": "24.21.0",
    "zod": "4.4.3",
}


def cache_directory() -> Path:
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "mcp-server-template" / "benchmarks"


def uv() -> str:
    """The uv that runs this, else the one on PATH."""
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        raise SystemExit("uv is missing; run this with: python3 with_uv.py run python -m benchmarks")
    return found


def project(cache: Path, variant: str, commit: str = "") -> Path:
    """Return the interpreter of a project with the answers of a variant.

    The template is that of the working tree, or of `commit`.
    """
    target = cache / f"{variant}{f'-{commit}' if commit else ''}"
    source = cache / "template"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    if commit:
        _extract(commit, source)
    else:
        for name in TEMPLATE_PATHS:
            _copy(ROOT / name, source / name)
    shutil.rmtree(target / "src", ignore_errors=True)
    data = [f"--data={name}={value}" for name, value in {**VARIANTS[variant], **ANSWERS}.items()]
    copy = [sys.executable, "-m", "copier", "copy", "--skip-tasks", "--defaults", "--overwrite", "--quiet"]
    _run([*copy, *data, str(source), str(target)])
    (target / "src" / PACKAGE / "tools" / "__init__.py").write_text(TOOLS, "utf-8")
    _run([uv(), "sync", "--quiet", "--python", PYTHON, "--directory", str(target)])
    return interpreter(target / ".venv")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", ".venv"))
    else:
        shutil.copy(source, target)


def _extract(commit: str, target: Path) -> None:
    """Write the template as it was in a commit, whatever its layout was then."""
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"git archive {commit}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(target, filter="data")


def fastmcp(cache: Path) -> Path:
    target = cache / "fastmcp"
    python = interpreter(target)
    if not python.exists():
        _run([uv(), "venv", "--quiet", "--python", PYTHON, str(target)])
    _run([uv(), "pip", "install", "--quiet", "--python", str(python), *FASTMCP])
    return python


def node(cache: Path, servers: Path) -> Path | None:
    """Return Node.js in an environment with the peers in TypeScript, and copies of `servers`; None without npm."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    target = cache / "node"
    target.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps({"private": True, "dependencies": NODE_PACKAGES})
    described = target / "package.json"
    if not described.exists() or described.read_text("utf-8") != manifest:
        described.write_text(manifest, "utf-8")
        _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(target)])
    for script in servers.glob("*.mjs"):  # which find packages from where they are
        shutil.copy(script, target)
    return target / "node_modules/node/bin/node"


def interpreter(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def versions(python: Path, *names: str) -> dict[str, str]:
    """The versions of distributions in an environment, and of its interpreter."""
    code = (
        "import importlib.metadata as m, json, platform, sys; "
        "print(json.dumps({'python': platform.python_version()} | {n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: list[str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "UV")}
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
