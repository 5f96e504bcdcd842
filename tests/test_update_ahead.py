"""Renderings that are made while Copier works: they are what the update needs, or the update does not use them."""

from __future__ import annotations

import json
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest
import yaml
from updating import ahead
from updating.git import File
from updating.rendering import Rendering
from updating.tables import PACKAGE
from updating.update import Update

from .small_template import SmallTemplate
from .support import ANSWERS_FILE, ROOT, run
from .template_repository import edit
from .test_update_scenarios import NEW, OLD, PAGE

pytestmark = pytest.mark.slow

RENDERED_AHEAD = f"""
import json, sys
from pathlib import Path
from updating import ahead
from updating.rendering import Rendering, render

template, answers = Path(sys.argv[1]), {{"package_name": "shop", "extras": True}}
wanted = [Rendering(template, version, answers, "update") for version in ("1.0.0", "2.0.0")]
ahead.start(template, *wanted)
made = ahead.result(template)
assert made.answers == [answers, answers]
for one, other in zip(made.files, render(*wanted), strict=True):
    assert one.pop("{ANSWERS_FILE}") and other.pop("{ANSWERS_FILE}")  # it has the path of a temporary folder
    assert one == other and len(one) > 5
"""


@pytest.fixture
def template(tmp_path: Path) -> SmallTemplate:
    made = SmallTemplate(tmp_path)
    made.release("1.0.0", OLD)
    made.release("2.0.0", NEW)
    return made


def test_both_versions_are_rendered_in_a_process_of_their_own(template: SmallTemplate) -> None:
    done = run(
        sys.executable, "-c", RENDERED_AHEAD, template.template, cwd=template.root, PYTHONPATH=str(ROOT / "hooks")
    )
    assert done.returncode == 0, done.stderr


OTHER_SETTINGS = ("copier.yml", "docs/extra.md", "docs/unedited.md")
"""A change of the interview, without which a version has the file docs/unedited.md."""


@pytest.mark.parametrize(
    ("changed", "settings", "answers", "rendered"),
    [
        ({}, (), {}, []),
        ({"docs/page.md": "# Other\n"}, (), {}, [{"docs/page.md"}]),
        ({"src/{{ package_name }}/production/__init__.py": ""}, (), {}, [{f"src/{PACKAGE}/production/__init__.py"}]),
        ({"docs/new.md": PAGE}, (), {}, []),
        ({"docs/page.md": None}, (), {}, [{"docs/page.md"}]),
        ({"docs/page.md": None, "docs/page.md.jinja": PAGE}, (), {}, [{"docs/page.md"}]),
        ({"docs/{{ package_name }}{{ extras }}.md": PAGE}, (), {}, [None]),
        ({}, OTHER_SETTINGS, {}, [None]),
        ({"docs/page.md": "# Other\n"}, (), {"package_name": "store"}, [None]),
    ],
    ids=[
        "nothing",
        "a file",
        "a path with the package",
        "a new file",
        "a removed file",
        "a file with expressions now",
        "a path with another expression",
        "the interview",
        "an answer",
    ],
)
def test_of_the_old_version_only_what_differs_is_rendered(
    template: SmallTemplate,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str | None],
    settings: tuple[str, ...],
    answers: dict[str, str],
    rendered: list[set[str] | None],
) -> None:
    files = {path: text for path, text in (OLD | changed).items() if text is not None}
    if settings:
        path, old, new = settings
        edit(template.template / path, old, new)
    template.release("3.0.0", files)
    given = {"package_name": "shop", "extras": True}
    before = Rendering(template.template, "1.0.0", given, "update")
    after = Rendering(template.template, "3.0.0", given | answers, "update")
    expected, updated = before.files(), after.files()
    only: list[Set[str] | None] = []
    render = Rendering.files

    def record(rendering: Rendering) -> dict[str, File]:
        only.append(rendering.only)
        return render(rendering)

    monkeypatch.setattr(Rendering, "files", record)
    made = before.files_given(after, updated)
    assert only == rendered
    for tree in (made, expected):
        del tree[ANSWERS_FILE]  # it has the path of a temporary folder
    assert made == expected


SAME: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("old", "given", "recorded", "used"),
    [
        (SAME, SAME, SAME, True),
        ({"extras": False}, SAME, SAME, False),
        (SAME, {"extras": False}, SAME, False),
        (SAME, {"dropped": 1}, SAME, False),
        (SAME, SAME, {"extras": False}, False),
    ],
    ids=["the same", "another old answer", "a given answer", "a dropped question", "a changed answer"],
)
def test_they_are_used_only_with_the_same_answers(
    template: SmallTemplate, old: dict[str, Any], given: dict[str, Any], recorded: dict[str, Any], used: bool
) -> None:
    project = template.copy("1.0.0")
    answers = yaml.safe_load((project / ANSWERS_FILE).read_text("utf-8"))
    tree = {ANSWERS_FILE: (yaml.safe_dump(answers | recorded), "100644")}
    (template.template / ahead.LOCK).touch()
    (template.template / ahead.FILE).write_text(json.dumps([[answers | old, answers | given], [{}, tree]]), "utf-8")
    _, new = Update(project, template.template, "1.0.0", ANSWERS_FILE).rendered()
    assert (new.keys() == {ANSWERS_FILE}) == used
    assert used or len(new) > 5
