"""Every file of a project has one owner, and no page asks the user to edit a file of the template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest

from .conftest import Renderings
from .support import DEFAULT, OWNERSHIP, ROOT, covers, excluded, files, owners

TEMPLATE = ROOT / "template"

EDIT = re.compile(
    r"\b(adapt|add|adjust|append|change|comment out|customi[sz]e|delete|edit|extend|fill in|give|insert|modify|put"
    r"|register|remove|replace|rewrite|(?<!is )(?<!are )set|tune|uncomment|write|yours)\b",
    re.IGNORECASE,
)
"""Words by which a sentence asks for an edit of a file."""

CLAIM = re.compile(
    r"\bthe template's\b|\bnever touche|\bbelongs? to the template\b|\bcopy\b|\bas `[^`]+` does\b", re.IGNORECASE
)
"""Words by which a sentence advises against an edit, asks for a copy, or cites a file as an example."""


@cache
def template_paths() -> list[str]:
    """Return every path that a project can have: there are no conditions in the names under template/."""
    names = {"{{ package_name }}": "weather_station", "{{ _copier_conf.answers_file }}": ".copier-answers.yml"}
    paths = []
    for path in files(TEMPLATE):
        for name, value in names.items():
            path = path.replace(name, value)
        paths.append(path.removesuffix(".jinja"))
    return paths


def test_every_file_has_one_owner() -> None:
    wrong = {path: owners(path) for path in template_paths() if len(owners(path)) != 1}
    assert wrong == {}, "add the file to one list of tests/ownership.toml"


def test_nothing_that_the_hook_makes_is_rendered() -> None:
    assert [path for path in template_paths() if "made" in owners(path)] == []


def test_every_pattern_matches_a_file() -> None:
    patterns = [pattern for owner in ("template", "user", "shared") for pattern in OWNERSHIP[owner]]
    assert [pattern for pattern in patterns if not any(covers(pattern, path) for path in template_paths())] == []


def test_an_update_leaves_out_the_users_files_and_nothing_else() -> None:
    left_out = set(excluded(DEFAULT, "update")) - set(excluded(DEFAULT, "copy"))
    assert left_out == {f"/{pattern}" for pattern in OWNERSHIP["user"]}


def test_few_files_are_shared() -> None:
    assert OWNERSHIP["shared"] == [".env.example", "pyproject.toml"]


@pytest.fixture(scope="module")
def pages(renderings: Renderings) -> dict[str, str]:
    """README and docs/ of this repository, and of projects that together have every page."""
    pages = {
        f"{path.name} of the template": path.read_text("utf-8")
        for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    }
    for name in ("everything", "default-auth-jwt"):
        pages |= {
            f"{path} ({name})": content.decode()
            for path, content in renderings[name].files.items()
            if path == "README.md" or path.startswith("docs/")
        }
    return pages


def test_no_page_asks_for_an_edit_of_a_file_of_the_template(pages: dict[str, str]) -> None:
    asked = [
        f"{page}: {sentence}"
        for page, text in pages.items()
        for sentence in sentences(text)
        if asks_for_an_edit(sentence)
    ]
    assert asked == []


@pytest.mark.parametrize(
    ("sentence", "asks"),
    [
        ("Change the thresholds in `ops/prometheus/rules/metrics.yml`.", True),
        ("Your processors go into [logging](src/weather_station/production/observe/logging.py): add them there.", True),
        ("`production/inbound/guard.py` has the list; extend it.", True),
        ("Register it in `tools/__init__.py`.", False),
        ("Add a dependency to `pyproject.toml`.", False),
        ("Put further rules into `ops/prometheus/rules/`.", False),
        ("The classes are in `production/upstream/errors.py`.", False),
        ("Copy `ops/alertmanager/alertmanager.yml` and change it.", False),
        ("Your own has to set it, as `ops/prometheus/prometheus.yml` does.", False),
        ("Until `AUTH_TOKENS` is set there are none: `docs/auth.md`.", False),
    ],
)
def test_a_sentence_that_asks_for_an_edit_is_recognised(sentence: str, asks: bool) -> None:
    assert asks_for_an_edit(sentence) is asks


def asks_for_an_edit(sentence: str) -> bool:
    """Return whether a sentence names a file of the template together with a word of editing."""
    if CLAIM.search(sentence) or not EDIT.search(prose(sentence)):
        return False
    return any(of_the_template(name) for name in named(sentence))


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page, without its code blocks."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|#]|\d+\. )", without_code):
        yield from re.split(r"(?<=[.:;])\s+", " ".join(paragraph.split()))


def prose(sentence: str) -> str:
    """Return the words of a sentence without code and link targets, which instruct nobody."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)", " ", sentence)


def named(sentence: str) -> list[str]:
    """Return the paths that a sentence names."""
    return re.findall(r"(?:`|\]\()([\w./{}-]+)(?:`|\))", sentence)


def of_the_template(name: str) -> bool:
    """Return whether a path, or the end of one, is that of files of the template."""
    paths = [path for path in template_paths() if path == name or ("." in name and path.endswith(f"/{name}"))]
    return bool(paths) and all(owners(path) == ["template"] for path in paths)
