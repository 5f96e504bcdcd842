"""Small templates in git with the real hooks and update stages, and projects generated from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copier import run_copy, run_update

from .support import ROOT
from .template_repository import commit, git

SETTINGS = """\
SUBDIRECTORY
_templates_suffix: .jinja
_answers_file: .copier-answers.yml
_envops:
  undefined: jinja2.StrictUndefined
  keep_trailing_newline: true

package_name:
  type: str
  default: shop

extras:
  type: bool
  default: true

ANSWERS_ONLY

_exclude:
  - |-
MARK    {%- if not extras %}
    docs/extra.md
    src/*/production/extra.py
    {%- endif %}
    {%- if _copier_operation == 'update' %}
    /README.md
    /src/*/options.py
    /src/*/tools/**
    {%- endif %}

"""

MARK = ".copier-update-unfinished"
ANSWERS_TEMPLATE = "{{ _copier_conf.answers_file }}.jinja"
COMMON_FILES = {ANSWERS_TEMPLATE: (ROOT / "template" / ANSWERS_TEMPLATE).read_text("utf-8")}
"""Files of every version."""


def settings() -> str:
    """Return the settings of a small template, with the real entries for what Copier writes in an update."""
    manifest = (ROOT / "interview" / "manifest.yml").read_text("utf-8")
    excluded = re.search(r"^_exclude:\n  - \|-\n((?:.*\n)+?.*endif.*\n)", manifest, re.MULTILINE)
    subdirectory = re.search(r"^_subdirectory: .*\n", (ROOT / "copier.yml").read_text("utf-8"), re.MULTILINE)
    computed = (ROOT / "interview" / "computed.yml").read_text("utf-8")
    answers_only = re.search(r"^answers_only:\n(?:  .*\n)+", computed, re.MULTILINE)
    assert excluded
    assert subdirectory
    assert answers_only
    assert MARK in answers_only[0]
    settings = SETTINGS.replace("SUBDIRECTORY\n", subdirectory[0]).replace("ANSWERS_ONLY\n", answers_only[0])
    return settings.replace("MARK", excluded[1])


def migration_stages() -> str:
    """Return the update stages of the interview, without the final check of the project."""
    tasks = (ROOT / "interview" / "tasks.yml").read_text("utf-8")
    match = re.search(r"^_migrations:\n(?:[ #-].*\n)+", tasks, re.MULTILINE)
    assert match
    stages, check, _ = match[0].partition(
        '  - command: ["{{ _copier_python }}", "{{ _copier_conf.src_path }}/hooks/post'
    )
    assert check
    return stages


class SmallTemplate:
    """A template in a git repository, with versions of a few files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.template = root / "template"
        shutil.copytree(ROOT / "hooks", self.template / "hooks", ignore=shutil.ignore_patterns("__pycache__", "v*.py"))
        shutil.copytree(ROOT / "interview" / "update", self.template / "interview" / "update")
        (self.template / "copier.yml").write_text(settings() + migration_stages(), "utf-8")
        git("init", "--quiet", cwd=self.template)

    def release(self, version: str, files: Mapping[str, str], migration: str = "") -> None:
        """Make a version of exactly these files, with a migration if one is given."""
        shutil.rmtree(self.template / "template", ignore_errors=True)
        write(self.template / "template", {**files, **COMMON_FILES})
        if migration:
            path = self.template / "hooks" / "migrations" / f"v{version.replace('.', '_')}_test.py"
            path.write_text(migration, "utf-8")
        commit(self.template, version)
        git("tag", version, cwd=self.template)

    def copy(self, version: str, name: str | Path = "project", **data: Any) -> Path:
        """Return a committed project of a version."""
        project = self.root / name
        run_copy(str(self.template), project, data=data, vcs_ref=version, defaults=True, unsafe=True, quiet=True)
        git("init", "--quiet", cwd=project)
        commit(project, "copied")
        return project

    def update(self, project: Path, version: str, **data: Any) -> None:
        """Update a project, without a commit."""
        run_update(project, data=data, vcs_ref=version, defaults=True, unsafe=True, overwrite=True, quiet=True)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files below a folder, without converting line endings."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())


def status(project: Path) -> dict[str, str]:
    """Return git's status of each path that differs from the last commit."""
    done = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all", "-z"],  # noqa: S607
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line[3:]: line[:2].strip() for line in done.stdout.split("\0") if line}
