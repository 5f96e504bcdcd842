"""Projects of earlier versions with an owner's edits, and the versions of the template that they are updated to.

The edits are typical ones: dependencies by `uv add`, own settings in pyproject.toml, tools, tests, rules, dashboards,
an override for compose, a renamed CI job. The next version of the template, which they are merged with, changes every
file that the template owns, and adds dependencies, a step, a question and its feature.
"""

from __future__ import annotations

import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

from copier import run_copy

from .releases import commit_of, previous_commit, questions_of, releases
from .support import DEFAULT, EVERYTHING, MINIMAL, Answers, answers, files, run, uv
from .template_repository import TemplateRepository, commit, edit, recorded, update

NOW, NEXT = "90.0.0", "91.0.0"
"""Tags of the working tree, and of the next version, which changes every file."""

MIXED = answers(
    project_name="Weather Station",
    profile="custom",
    upstream_base_url="https://api.example.com/v1",
    upstream_api_key_env="API_KEY",
    auth="none",
    enable_logging=False,
    enable_telemetry=False,
    enable_rate_limiting=False,
    metrics_port=9464,
    max_retries=7,
    session_mode="stateful",
    response_mode="sse",
    python_version="3.12",
    include_kubernetes=True,
)
ANSWER_SETS = {"default": DEFAULT, "minimal": MINIMAL, "everything": EVERYTHING, "mixed": MIXED}

ORIGINS = [*(release.version for release in releases()), "previous commit"]


class TemplateHistory:
    """A repository with all versions of the template, and projects of each version, each made once."""

    def __init__(self, root: Path) -> None:
        self.repository = TemplateRepository.empty(root)
        self.commits = {release.version: release.commit for release in releases()}
        self.commits["previous commit"] = previous_commit()
        self.revisions: dict[str, str] = {}
        for origin, commit_here in self.commits.items():
            self.repository.load_revision(commit_of(commit_here))
            self.revisions[origin] = self.repository.release("" if origin == "previous commit" else origin)
        self.repository.load_working_tree()
        self.repository.release(NOW)
        change_everything(self.repository.template)
        self.repository.release(NEXT)
        self.original = cache(self._original)
        self.seconds: list[float] = []
        """Duration of each update."""

    def _original(self, origin: str, name: str) -> Path:
        return self.copy(origin, f"{name} {origin}", ANSWER_SETS[name])

    def copy(self, origin: str, project: str | Path, data: Answers) -> Path:
        """Return a committed project of a version, with the answers to the questions that this version asks."""
        known = questions_of(self.commits[origin])
        asked = {question: answer for question, answer in data.items() if question in known}
        return self.repository.copy(project, revision=self.revisions[origin], **asked)

    def project(self, origin: str, name: str, directory: Path) -> Path:
        """Return a copy of the project of a version and a set of answers, which a test may change."""
        return Path(shutil.copytree(self.original(origin, name), directory / "weather-station"))

    def update(self, project: Path, version: str, **data: Any) -> None:
        start = time.perf_counter()
        update(project, version, **data)
        self.seconds.append(time.perf_counter() - start)

    def fresh(self, version: str, project: Path, directory: Path) -> dict[str, bytes]:
        """Return the files of a new project of a version with the recorded answers of `project`."""
        data = {name: value for name, value in recorded(project).items() if not name.startswith("_")}
        source = str(self.repository.template)
        run_copy(source, directory, data=data, vcs_ref=version, defaults=True, skip_tasks=True, quiet=True)
        return files(directory)


# --- The next version ----------------------------------------------------------------------------------------

ADDED = {
    ".py": '\n\nNEXT_VERSION = "a name that the next version brings"\n',
    ".md": "\nA sentence that the next version brings.\n",
    ".json": "",
}
"""Text that the next version appends to a file, by suffix; other files get a comment."""

CHANGED_JSON = {
    '"editable": true': '"editable": false',
    '"MCP server"': '"An MCP server"',
    '"Audit record"': '"Record of the audit"',
}
"""Texts of dashboards and schemas, and what the next version has in their place."""

OWNER_APPENDS = ("pyproject.toml.jinja", ".gitignore.jinja")
"""Files to whose end owners append; the template adds lines further up."""


def change_everything(template: Path) -> None:
    """Make the next version: a change in every file, a new question with its feature, and changes within files."""
    for path in (template / "template").rglob("*"):
        kind = path.with_suffix("").suffix if path.suffix == ".jinja" else path.suffix
        if path.is_file() and path.name not in ("{{ _copier_conf.answers_file }}.jinja", *OWNER_APPENDS):
            text = path.read_text("utf-8")
            path.write_text(text + ADDED.get(kind, "\n# A line that the next version brings.\n"), "utf-8")
            if kind == ".json":
                for old, new in CHANGED_JSON.items():
                    text = text.replace(old, new)
                path.write_text(text, "utf-8")

    project = template / "template"
    pyproject = project / "pyproject.toml.jinja"
    edit(pyproject, '    "uvicorn>=', '    "sniffio>=1.3",\n    "uvicorn>=')
    edit(
        pyproject, "    # Yours: uv add appends below", '    "typing-extensions>=4",\n    # Yours: uv add appends below'
    )
    edit(pyproject, "    # Yours: uv add --dev", '    "pytest-timeout>=2",\n    # Yours: uv add --dev')
    edit(pyproject, "    # Yours below", '    "ignore:a new one:DeprecationWarning",\n    # Yours below')
    edit(pyproject, 'select = ["A", ', 'select = ["A", "ANN", ')
    edit(pyproject, "strict = true\nfiles", "strict = true\nwarn_unreachable = true\nfiles")
    workflow = project / ".github" / "workflows" / "ci.yml.jinja"
    edit(workflow, "timeout-minutes: 20", "timeout-minutes: 25")
    edit(workflow, "      - run: uv sync --locked\n", "      - run: uv sync --locked\n      - run: uv pip check\n")
    compose = project / "docker-compose.yml.jinja"
    edit(compose, "    ports:", "    labels: {next: version}\n    ports:")
    edit(project / "Dockerfile.jinja", "FROM ", "# The next version's base.\nFROM ", count=1)
    edit(project / ".gitignore.jinja", ".coverage*\n", ".coverage*\n.next/\n")
    meter = project / "src" / "{{ package_name }}" / "production" / "observe" / "meter.py"
    edit(meter, '"""', '"""New. ', count=1)

    config = template / "copier.yml"
    question = "enable_caching:\n  type: bool\n  help: A cache of answers?\n  default: true\n\nenable_retries:\n"
    edit(config, "enable_retries:\n", question, count=1)
    parts = template / "interview" / "tables" / "parts.yml"
    edit(parts, "redaction: ", "caching: {{ enable_caching | default(true) }}\nredaction: ", count=1)
    (meter.parent / "caching.py").write_text('"""Caching, which the next version brings."""\n', "utf-8")
    (project / "docs" / "caching.md").write_text("# Caching\n", "utf-8")


# --- The owner's edits ----------------------------------------------------------------------------------------


def edit_as_owner(project: Path, *, starter: bool) -> None:
    """Make and commit typical edits of an owner, with or without the starter."""
    add = run(uv(), "add", "--frozen", "pyyaml>=6", "python-dateutil>=2.9", cwd=project)
    assert add.returncode == 0, add.stderr
    add = run(uv(), "add", "--frozen", "--dev", "types-pyyaml>=6", "time-machine>=2.16", cwd=project)
    assert add.returncode == 0, add.stderr
    pyproject = project / "pyproject.toml"
    edit(pyproject, 'version = "0.1.0"', 'version = "1.4.2"')
    edit(pyproject, 'readme = "README.md"', 'readme = "README.md"\nlicense = "MIT"\nauthors = [{name = "Ada"}]')
    edit(
        pyproject,
        "extend-ignore = [...]\n",
        'extend-ignore = [...]\nextend-select = ["PLE"]\nextend-ignore = ["E501"]\n',
    )
    edit(pyproject, '"tests/**" = ["S101"]\n', '"tests/**" = ["S101"]\n"src/*/tools/**" = ["N802"]\n')
    edit(pyproject, "    # Yours below\n", '    # Yours below\n    "ignore:.*utcnow.*:DeprecationWarning",\n')
    pyproject.write_text(
        pyproject.read_text("utf-8")
        + '\n[[tool.mypy.overrides]]\nmodule = ["dateutil.*"]\nignore_missing_imports = true\n\n[tool.mine]\nkey = 1\n',
        "utf-8",
    )

    tools = project / "src" / "weather_station" / "tools"
    (tools / "stocks.py").write_text(STOCKS, "utf-8")
    (project / "tests" / "test_stocks.py").write_text(TEST_STOCKS, "utf-8")
    if starter:
        seeded = next(path for path in tools.glob("*.py") if path.name in ("weather.py", "example.py"))
        edit(seeded, '"""', '"""Mine by now. ', count=1)
        if "register_modules" not in (tools / "__init__.py").read_text("utf-8"):  # until 0.1.0
            edit(tools / "__init__.py", "\nfrom .", "\nfrom . import stocks\nfrom .", count=1)
            with (tools / "__init__.py").open("a", encoding="utf-8") as registered:
                registered.write("    stocks.register(server)\n")
    else:
        for path in (tools / "weather.py", tools / "example.py", project / "tests" / "test_tools.py"):
            path.unlink(missing_ok=True)
        (tools / "__init__.py").write_text(REGISTER, "utf-8")

    edit(project / "README.md", "# Weather Station", "# Stocks and Weather")
    if (project / "CHANGELOG.md").exists():
        edit(project / "CHANGELOG.md", "## [Unreleased]", "## [Unreleased]\n\n### Fixed\n\n- Mine.")
    (project / "docker-compose.override.yml").write_text("services:\n  server:\n    mem_limit: 1g\n", "utf-8")
    (project / ".gitignore").write_text((project / ".gitignore").read_text("utf-8") + "notes/\n", "utf-8")
    if (project / "ops" / "prometheus").exists():
        (project / "ops/prometheus/rules/mine.yml").write_text("groups: []\n", "utf-8")
        (project / "ops/grafana/dashboards/mine.json").write_text('{"title": "Mine"}\n', "utf-8")
        receivers = project / "ops/alertmanager/alertmanager.yml"
        edit(receivers, "  - name: on-call\n", "  - name: on-call\n    webhook_configs: []\n")
    if (project / ".github").exists():
        edit(project / ".github/workflows/ci.yml", "name: Lint, types, tests", "name: Checks")
        (project / ".github/workflows/mine.yml").write_text("name: Mine\non: push\njobs: {}\n", "utf-8")
    (project / ".dockerignore").unlink(missing_ok=True)
    commit(project)


STOCKS = '''\
"""Prices."""

from typing import Any

import yaml
from mcp.server.mcpserver import MCPServer


async def get_price(name: str) -> float:
    """The price of one share."""
    prices: dict[str, float] = yaml.safe_load("{acme: 12.5}")
    return prices[name]


def register(server: MCPServer[Any]) -> None:
    server.tool()(get_price)
'''
TEST_STOCKS = """\
from weather_station.tools.stocks import get_price


async def test_a_share_has_a_price() -> None:
    assert await get_price("acme") == 12.5
"""
REGISTER = '''\
"""Mine alone."""

from typing import Any

from mcp.server.mcpserver import MCPServer

from . import stocks


def register(server: MCPServer[Any]) -> None:
    stocks.register(server)
'''
