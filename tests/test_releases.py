"""No update from any release silently loses a file or an answer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version
from updating.tables import Tables

from . import releases as under_test
from .releases import (
    Interview,
    MergedMigrations,
    Release,
    commit_of,
    losses,
    losses_since,
    newly_rejected_answers,
    releases,
)
from .support import ROOT

NO_MIGRATION = MergedMigrations(Tables(), {})


def test_every_release_is_a_commit_in_the_order_of_versions() -> None:
    versions = [Version(release.version) for release in releases()]
    assert versions
    assert versions == sorted(set(versions))
    assert [commit_of(release.commit) for release in releases()] == [release.commit for release in releases()]


@pytest.mark.parametrize("release", releases(), ids=lambda release: str(release.version))
def test_what_is_renamed_or_removed_has_a_migration(release: Release) -> None:
    assert losses_since(release) == [], "hooks/migrations/README.md says how to write one"


PATHS_BEFORE = {
    "docs/guard.md",
    "src/{{ package_name }}/production/guard.py",
    "src/{{ package_name }}/tools/weather.py",
}
GUARD = "src/{{ package_name }}/production/guard.py"
DOORMAN = "src/{{ package_name }}/production/doorman.py"


@pytest.mark.parametrize(
    ("now", "migrations", "losses_expected"),
    [
        (PATHS_BEFORE | {"docs/new.md"}, NO_MIGRATION, []),
        (PATHS_BEFORE - {"src/{{ package_name }}/tools/weather.py"}, NO_MIGRATION, []),
        (PATHS_BEFORE - {"docs/guard.md"}, NO_MIGRATION, ["template/docs/guard.md was removed without a migration"]),
        (
            PATHS_BEFORE - {"docs/guard.md"},
            MergedMigrations(Tables([{"GONE": {"docs/guard.md": "See docs/auth.md."}}]), {}),
            [],
        ),
        (PATHS_BEFORE - {GUARD} | {DOORMAN}, NO_MIGRATION, [f"template/{GUARD} was removed without a migration"]),
        (PATHS_BEFORE - {GUARD} | {DOORMAN}, MergedMigrations(Tables([{"MOVED": {GUARD: DOORMAN}}]), {}), []),
        (
            PATHS_BEFORE - {GUARD},
            MergedMigrations(Tables([{"MOVED": {GUARD: DOORMAN}}]), {}),
            [f"template/{GUARD} moved to {DOORMAN}, which does not exist"],
        ),
        (
            PATHS_BEFORE - {GUARD},
            MergedMigrations(Tables([{"MOVED": {GUARD: DOORMAN}, "GONE": {DOORMAN: "Gone later."}}]), {}),
            [],
        ),
    ],
)
def test_a_removed_path_needs_a_migration(
    now: set[str], migrations: MergedMigrations, losses_expected: list[str]
) -> None:
    assert list(losses(PATHS_BEFORE, set(), now, set(), migrations)) == losses_expected


@pytest.mark.parametrize(
    ("migrations", "losses_expected"),
    [
        ({}, ["the question log_level was removed without a migration"]),
        ({"log_level": "verbosity"}, []),
        ({"log_level": None}, []),
        ({"log_level": "loudness"}, ["the question log_level was renamed to loudness, which does not exist"]),
    ],
)
def test_a_removed_question_needs_a_migration(migrations: dict[str, str | None], losses_expected: list[str]) -> None:
    assert (
        list(losses(set(), {"auth", "log_level"}, set(), {"auth", "verbosity"}, MergedMigrations(Tables(), migrations)))
        == losses_expected
    )


QUESTIONS = """
_envops: {}
version: {type: str, default: "2", choices: [%s]}
width: {type: int, default: 80, validator: "{%% if not %s %%}No.{%% endif %%}"}
word: {type: str, default: "", validator: "{%% from 'checks' import check %%}{{ check(word) }}"}
"""
INTERVIEW_BEFORE = {
    "copier.yml": QUESTIONS % ("'1', '2'", "width > 0"),
    "checks": "{% macro check(word) %}{% if ' ' in word %}No.{% endif %}{% endmacro %}",
}


@pytest.mark.parametrize(
    ("now", "migrations", "losses_expected"),
    [
        ({}, NO_MIGRATION, []),
        ({"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")}, NO_MIGRATION, ["version no longer accepts '1'"]),
        (
            {"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")},
            MergedMigrations(Tables(), {}, {"version": {"1": "2"}}),
            [],
        ),
        (
            {"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")},
            MergedMigrations(Tables(), {}, {"version": {"1": "4"}}),
            ["version no longer accepts '1'"],
        ),
        (
            {"copier.yml": QUESTIONS % ("'1', '2'", "1 < width")},
            NO_MIGRATION,
            ["width no longer accepts 1"],
        ),
        (
            {"checks": "{% macro check(word) %}{% if '_' in word %}No.{% endif %}{% endmacro %}"},
            NO_MIGRATION,
            ["word", "word"],
        ),
        (
            {"checks": "{% macro check(word) %}{% if '_' in word %}No.{% endif %}{% endmacro %}"},
            MergedMigrations(Tables(), {}, {}, {"word": "Use another."}),
            [],
        ),
    ],
)
def test_a_rejected_former_answer_needs_a_migration(
    now: dict[str, str], migrations: MergedMigrations, losses_expected: list[str]
) -> None:
    before, current = Interview(INTERVIEW_BEFORE.__getitem__), Interview((INTERVIEW_BEFORE | now).__getitem__)
    sentences = list(newly_rejected_answers(before, current, migrations))
    assert len(sentences) == len(losses_expected), sentences
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, losses_expected, strict=True)), (
        sentences
    )


def test_a_shallow_clone_is_reported_with_the_command_to_complete_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(under_test, "ROOT", clone)
    first = "0" * 40
    with pytest.raises(LookupError, match=r"This clone is shallow .*git fetch --unshallow") as refusal:
        commit_of(first)
    assert len(str(refusal.value).splitlines()) == 1


def test_an_unknown_commit_is_reported() -> None:
    with pytest.raises(LookupError, match=re.escape("0" * 40)):
        commit_of("0" * 40)
