"""Edits of a project of 0.1.0 in files that repeat themselves, through a real update to the working tree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .line_places import marked, places
from .releases import releases
from .template_repository import TemplateRepository, commit, update

pytestmark = pytest.mark.slow

DASHBOARD, PANEL = "ops/grafana/dashboards/metrics.json", "Memory"
COMPOSE, SERVICE = "docker-compose.yml", "prometheus"
WORKFLOW, JOB = ".github/workflows/ci.yml", "test"
MARK = "# mine"


def block(text: str, name: str) -> re.Match[str]:
    """The lines of a service or a job."""
    match = re.search(rf"^  {name}:\n(?:    .*\n|\n)+", text, re.MULTILINE)
    assert match, f"there is no {name}"
    return match


def double(path: Path, name: str) -> None:
    """Put a copy of a block before it, as a next version may have one that is alike."""
    text = path.read_text("utf-8")
    match = block(text, name)
    copy = match[0].replace(f"  {name}:", f"  {name}-too:", 1).rstrip() + "\n\n"
    path.write_text(text[: match.start()] + copy + text[match.start() :], "utf-8")


def mark(path: Path, name: str, line: str) -> None:
    """Edit the line of a block that begins with `line`."""
    text = path.read_text("utf-8")
    match = block(text, name)
    marked_block, number = re.subn(rf"^(\s+{re.escape(line)}.*)$", rf"\1  {MARK}", match[0], flags=re.MULTILINE)
    assert number == 1
    path.write_text(text[: match.start()] + marked_block + text[match.end() :], "utf-8")


def opacities(project: Path) -> dict[str, int]:
    """How opaque each panel is filled."""
    panels = json.loads((project / DASHBOARD).read_text("utf-8"))["panels"]
    customs = {panel["title"]: panel.get("fieldConfig", {}).get("defaults", {}).get("custom", {}) for panel in panels}
    return {title: custom["fillOpacity"] for title, custom in customs.items() if "fillOpacity" in custom}


def test_an_edit_of_one_panel_service_or_job_stays_in_it(tmp_path: Path) -> None:
    """On 0.1.0 they landed in the panel "Running calls", in the copy of the service, and in the copy of the job."""
    repository = TemplateRepository.empty(tmp_path)
    (release,) = (match for match in releases() if match.version == "0.1.0")
    repository.load_revision(release.commit)
    repository.release(release.version)
    repository.load_working_tree()
    double(repository.template / "template" / f"{COMPOSE}.jinja", SERVICE)
    double(repository.template / "template" / f"{WORKFLOW}.jinja", JOB)
    repository.release("90.0.0")

    project = repository.copy(revision=release.version)
    text = (project / DASHBOARD).read_text("utf-8")
    at = text.rindex('"fillOpacity": 8', 0, text.index(f'"title": "{PANEL}"'))
    (project / DASHBOARD).write_text(text[:at] + '"fillOpacity": 77' + text[at + len('"fillOpacity": 8') :], "utf-8")
    before = opacities(project)
    mark(project / COMPOSE, SERVICE, "start_period:")
    mark(project / WORKFLOW, JOB, "enable-cache:")
    commit(project)
    edited = {path: (project / path).read_text("utf-8") for path in (COMPOSE, WORKFLOW)}

    update(project, "90.0.0")

    now = opacities(project)
    assert {title for title, value in now.items() if value == 77} == {PANEL}
    assert {title: now[title] for title in before.keys() & now.keys()} == {
        title: before[title] for title in before.keys() & now.keys()
    }
    for path, name in ((COMPOSE, SERVICE), (WORKFLOW, JOB)):
        text = (project / path).read_text("utf-8")
        assert f"  {name}-too:" in text
        (was,), (line,) = marked(edited[path], MARK), marked(text, MARK)
        assert places(path, text)[line] == places(path, edited[path])[was], path
        assert name in places(path, text)[line]
