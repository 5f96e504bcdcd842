"""The site of the documentation can be made, and read from disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .support import DOCUMENTATION, ROOT, run, uv


@pytest.mark.slow
@pytest.mark.release
def test_the_site_has_every_page_and_needs_no_server(tmp_path: Path) -> None:
    """A warning of Sphinx, such as a link that leads nowhere, is an error."""
    command = "python3 with_uv.py run --isolated --group docs python -m docs.build"
    assert command in (ROOT / "docs" / "build.py").read_text("utf-8")
    site = tmp_path / "site"
    done = run(uv(), *command.split()[2:], site, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    pages = {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in site.rglob("*.html")}
    expected = {str(path.relative_to(ROOT).with_suffix(".html")) for path in DOCUMENTATION}
    projects = {f"template/docs/{path.name.split('.')[0]}.html" for path in (ROOT / "template" / "docs").iterdir()}
    assert expected | projects <= pages.keys()
    assert (site / "searchindex.js").exists()
    elsewhere = {
        name: re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?:[^"]+"', text) for name, text in pages.items()
    }
    assert {name: found for name, found in elsewhere.items() if found} == {}
