"""Projects of the last release with edits of twelve files that the template owns: an update keeps each at its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .line_places import places
from .owner_projects import ANSWER_SETS, NOW
from .releases import questions_of, releases
from .support import copier, copy_template, path_with_uv, run, uv
from .template_repository import TemplateRepository, commit

pytestmark = [pytest.mark.slow, pytest.mark.release]


@dataclass(frozen=True)
class Edit:
    """An owner's edit of a line.

    Attributes:
        path: The file in a project of the last release.
        before: A text of the file; the edit is in the first line with `old` after it.
        old: The text that the owner replaces.
        new: The text in its place.
        moved_to: The file in a project of this version, where it has another name.
    """

    path: str
    before: str
    old: str
    new: str
    moved_to: str = ""

    @property
    def path_now(self) -> str:
        return self.moved_to or self.path

    def fits(self, project: Path) -> bool:
        """Return whether the project has the file and the text."""
        file = project / self.path
        return file.exists() and self.before in file.read_text("utf-8")

    def make(self, project: Path) -> None:
        file = project / self.path
        text = file.read_text("utf-8")
        start = text.index(self.before) + len(self.before)
        position = text.index(self.old, start)
        file.write_text(text[:position] + self.new + text[position + len(self.old) :], "utf-8")

    def place(self, project: Path, path: str) -> tuple[tuple[str, ...], str, str]:
        """Return the blocks around the edited line, by a parser of its language, the line above it, and the line."""
        lines = (project / path).read_text("utf-8").split("\n")
        edited = [number for number, line in enumerate(lines) if self.new.strip("\n").split("\n")[-1] in line]
        assert len(edited) == 1, f"{path} has {self.new!r} in {len(edited)} lines"
        place = places(path, "\n".join(lines))[edited[0]]
        return place, "" if place else lines[edited[0] - 1], lines[edited[0]]


LAYER = "src/weather_station/production"
DASHBOARDS = "ops/grafana/dashboards"

EDITS = (
    Edit(f"{DASHBOARDS}/metrics.json", '"title": "Process",', '"fillOpacity": 8', '"fillOpacity": 77'),
    Edit(f"{DASHBOARDS}/retry.json", '"title": "Retries",', '"h": 8', '"h": 77'),
    Edit("docker-compose.yml", "\n  server:\n", "memory: 512M", "memory: 777M"),
    Edit("docker-compose.yml", "\n  prometheus:\n", "pids: 256", "pids: 777"),
    Edit(".github/workflows/ci.yml", "name: Image\n", "timeout-minutes: 20", "timeout-minutes: 77"),
    Edit(".github/workflows/ci.yml", "name: Known vulnerabilities\n", "contents: read", "contents: write"),
    Edit(".github/workflows/update.yml", "name: Template update", "17 5 * * 1", "17 5 * * 7"),
    Edit(".github/dependabot.yml", "ecosystem: uv\n", "interval: weekly", "interval: monthly"),
    Edit("Dockerfile", "PORT=8000 MCP_TRANSPORT=http", "\nEXPOSE 8000", "\nEXPOSE 8000\nENV TZ=Europe/Lisbon"),
    Edit(".dockerignore", "", "!README.md", "!README.md\n!NOTICE.txt"),
    Edit("ops/load-balancer/haproxy.cfg", "default-server", "inter 500ms", "inter 777ms"),
    Edit("ops/load-balancer/docker-compose.yml", "load-balancer:\n    image", "memory: 64M", "memory: 77M"),
    Edit("ops/alertmanager/alertmanager.yml", "routes:\n", "repeat_interval: 1h", "repeat_interval: 7h"),
    Edit("ops/prometheus/prometheus.yml", "global:", "evaluation_interval: 15s", "evaluation_interval: 77s"),
    Edit("ops/prometheus/rules/metrics.yml", "alert: HighErrorRate\n", "for: 5m", "for: 77m"),
    Edit("ops/prometheus/rules/retry.yml", "alert: UpstreamRetriesHigh\n", "for: 10m", "for: 77m"),
    Edit("ops/kubernetes/base/autoscaler.yml", "spec:\n", "maxReplicas: 10", "maxReplicas: 77"),
    Edit("pyproject.toml", "[tool.ruff]\n", "line-length = 120", "line-length = 127"),
    Edit("docs/deployment.md", "# Deployment\n", "\n\n", "\n\nOurs runs in Lisbon.\n\n"),
    Edit(f"{LAYER}/health.py", "", 'title="Health check"', 'title="Our health"', f"{LAYER}/observe/health.py"),
    Edit(f"{LAYER}/lifecycle.py", "", "CLOSE_SECONDS = 3.0", "CLOSE_SECONDS = 7.7", f"{LAYER}/serve/lifecycle.py"),
)


@pytest.mark.parametrize("name", ["default", "minimal", "everything"])
def test_each_edit_stays_at_its_place(tmp_path: Path, figure: Callable[[str], None], name: str) -> None:
    release = releases()[-1]
    repository = TemplateRepository.empty(tmp_path)
    repository.load_revision(release.commit)
    repository.release(release.version)
    known = questions_of(release.commit)
    project = repository.copy(**{question: value for question, value in ANSWER_SETS[name].items() if question in known})
    repository.clear()
    copy_template(repository.template)
    repository.release(NOW)
    edits = [made for made in EDITS if made.fits(project)]
    for made in edits:
        made.make(project)
    expected = {made: made.place(project, made.path) for made in edits}
    commit(project)

    done = copier("update", "--trust", "--defaults", cwd=project, PATH=path_with_uv(), MCP_TEMPLATE_STRICT="1")
    assert done.returncode == 0, done.stderr  # 1 where there is a conflict

    assert {made: made.place(project, made.path_now) for made in edits} == expected
    assert len({made.path for made in edits}) >= 12
    tests = run(uv(), "run", "--no-sync", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-2000:]
    listed = ", ".join(made.path_now for made in edits)
    figure(f"{name}: {len(edits)} edits kept ({listed}); {tests.stdout.strip().splitlines()[-1]}")
