"""Make the site: a page for each Markdown file of this repository, and for each page of a generated project.

    python3 with_uv.py run --isolated --group docs python -m docs.build [FOLDER]

writes it to FOLDER, build/site if none is given: open index.html there, no server is needed. A warning, such as a link
that leads nowhere, is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from copier import run_copy

from tests.support import EVERYTHING, ROOT, choices, copy_template, questions
from tests.template_repository import git

SECTIONS = {
    "Use": [
        "../README",
        "tutorial",
        "reference",
        "openapi",
        "updating",
        "troubleshooting",
        "faq",
        "python-use",
        "pictures",
    ],
    "A generated project": ["../template/README", "../template/AGENTS", "../template/docs/*"],
    "Background": [
        "performance",
        "../benchmarks/README",
        "../benchmarks/results/table",
        "../packages/openapi-tools/README",
        "redaction-score",
        "decisions/*",
    ],
    "The template": [
        "../CONTRIBUTING",
        "../hooks/migrations/README",
        "../examples/README",
        "../CHANGELOG",
        "../SECURITY",
        "../CODE_OF_CONDUCT",
    ],
}
"""The pages of each part of the navigation, as seen from docs/."""

SILENT: dict[str, Any] = {"defaults": True, "skip_tasks": True, "quiet": True}

START = '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">Documentation</a>\n'


def collect(folder: Path) -> None:
    """Copy this repository into a folder, with a project that has every feature in the place of the template."""
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).rstrip("\0").split("\0"):
        if not name.startswith("template/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        copy_template(source)
        answers = EVERYTHING | {"upstream_auth": "per_caller"}
        run_copy(str(source), folder / "template", data=answers, **SILENT)
        for method in {*choices(questions()["auth"])} - {answers["auth"]}:  # pages that exclude each other
            run_copy(str(source), Path(name) / method, data=answers | {"auth": method}, **SILENT)
            for page in (Path(name) / method / "docs").iterdir():
                if not (folder / "template" / "docs" / page.name).exists():
                    shutil.copy(page, folder / "template" / "docs")
    for page in folder.rglob("*.md"):
        text = page.read_text("utf-8")
        text = re.sub(r"\]\((\.\./)?(examples/)?weather-station/", project_of(page, folder), text)
        text = re.sub(r"^\[!\[.*badge.*\n", "", text, flags=re.MULTILINE)  # for the place that shows README
        page.write_text(text, "utf-8")
    index = folder / "docs" / "index.md"
    index.write_text(index.read_text("utf-8") + "".join(navigation(*part) for part in SECTIONS.items()), "utf-8")


def project_of(page: Path, folder: Path) -> str:
    """Return the beginning of a link from a page to the project, where it has a link to the example."""
    return "](" + "../" * len(page.relative_to(folder).parent.parts) + "template/"


def navigation(caption: str, pages: list[str]) -> str:
    listed = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    with tempfile.TemporaryDirectory() as source:
        collect(Path(source))
        options = [
            "--builder",
            "html",
            "--conf-dir",
            str(ROOT / "docs"),
            "--fail-on-warning",
            "--keep-going",
            "--quiet",
        ]
        command = [sys.executable, "-m", "sphinx", *options, "--fresh-env", source, str(target)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not status:
        (target / "index.html").write_text(START, "utf-8")
        sys.stdout.write(f"{target / 'index.html'}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
