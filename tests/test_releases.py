"""No update loses a file or an answer without a word, from whichever release."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version
from updating.tables import Tables

from . import releases as under_test
from .releases import Interview, Migrated, Release, commit_of, losses, losses_since, refusals, releases
from .support import ROOT

NO_MIGRATION = Migrated(Tables(), {})


def test_every_release_is_a_commit_in_the_order_of_versions() -> None:
    versions = [Version(release.version) for release in releases()]
    assert versions
    assert versions == sorted(set(versions))
    assert [commit_of(release.commit) for release in releases()] == [release.commit for release in releases()]


@pytest.mark.parametrize("release", releases(), ids=lambda release: str(release.version))
def test_what_is_renamed_or_removed_has_a_migration(release: Release) -> None:
    assert losses_since(release) == [], "hooks/migrations/README.md says how to write one"


THEN = {"docs/guard.md", "src/{{ package_name }}/production/guard.py", "src/{{ package_name }}/tools/weather.py"}
GUARD = "src/{{ package_name }}/production/guard.py"
DOORMAN = "src/{{ package_name }}/production/doorman.py"


@pytest.mark.parametrize(
    ("now", "migrated_tables", "lost"),
    [
        (THEN | {"docs/new.md"}, NO_MIGRATION, []),
        (THEN - {"src/{{ package_name }}/tools/weather.py"}, NO_MIGRATION, []),
        (THEN - {"docs/guard.md"}, NO_MIGRATION, ["template/docs/guard.md is gone, and no migration says where to"]),
        (THEN - {"docs/guard.md"}, Migrated(Tables([{"GONE": {"docs/guard.md": "See docs/auth.md."}}]), {}), []),
        (THEN - {GUARD} | {DOORMAN}, NO_MIGRATION, [f"template/{GUARD} is gone, and no migration says where to"]),
        (THEN - {GUARD} | {DOORMAN}, Migrated(Tables([{"MOVED": {GUARD: DOORMAN}}]), {}), []),
        (
            THEN - {GUARD},
            Migrated(Tables([{"MOVED": {GUARD: DOORMAN}}]), {}),
            [f"template/{GUARD} moved to {DOORMAN}, which is not there"],
        ),
        (THEN - {GUARD}, Migrated(Tables([{"MOVED": {GUARD: DOORMAN}, "GONE": {DOORMAN: "Gone later."}}]), {}), []),
    ],
)
def test_a_path_that_vanished_is_a_loss_unless_a_migration_knows(
    now: set[str], migrated_tables: Migrated, lost: list[str]
) -> None:
    assert list(losses(THEN, set(), now, set(), migrated_tables)) == lost


@pytest.mark.parametrize(
    ("migrated_tables", "lost"),
    [
        ({}, ["the question log_level is gone, and no migration says what becomes of its answer"]),
        ({"log_level": "verbosity"}, []),
        ({"log_level": None}, []),
        ({"log_level": "loudness"}, ["the question log_level became loudness, which is not asked"]),
    ],
)
def test_a_question_that_vanished_is_a_loss_unless_a_migration_knows(
    migrated_tables: dict[str, str | None], lost: list[str]
) -> None:
    assert (
        list(losses(set(), {"auth", "log_level"}, set(), {"auth", "verbosity"}, Migrated(Tables(), migrated_tables)))
        == lost
    )


QUESTIONS = """
_envops: {}
version: {type: str, default: "2", choices: [%s]}
width: {type: int, default: 80, validator: "{%% if not %s %%}No.{%% endif %%}"}
word: {type: str, default: "", validator: "{%% from 'checks' import check %%}{{ check(word) }}"}
"""
THEN_ASKED = {
    "copier.yml": QUESTIONS % ("'1', '2'", "width > 0"),
    "checks": "{% macro check(word) %}{% if ' ' in word %}No.{% endif %}{% endmacro %}",
}


@pytest.mark.parametrize(
    ("now", "migrated_tables", "lost"),
    [
        ({}, NO_MIGRATION, []),
        ({"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")}, NO_MIGRATION, ["version does not accept '1' any more"]),
        (
            {"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")},
            Migrated(Tables(), {}, {"version": {"1": "2"}}),
            [],
        ),
        (
            {"copier.yml": QUESTIONS % ("'2', '3'", "width > 0")},
            Migrated(Tables(), {}, {"version": {"1": "4"}}),
            ["version does not accept '1' any more"],
        ),
        (
            {"copier.yml": QUESTIONS % ("'1', '2'", "1 < width")},
            NO_MIGRATION,
            ["width does not accept 1 any more"],
        ),
        (
            {"checks": "{% macro check(word) %}{% if '_' in word %}No.{% endif %}{% endmacro %}"},
            NO_MIGRATION,
            ["word", "word"],
        ),
        (
            {"checks": "{% macro check(word) %}{% if '_' in word %}No.{% endif %}{% endmacro %}"},
            Migrated(Tables(), {}, {}, {"word": "Use another."}),
            [],
        ),
    ],
)
def test_an_answer_that_is_not_accepted_any_more_is_a_loss_unless_a_migration_knows(
    now: dict[str, str], migrated_tables: Migrated, lost: list[str]
) -> None:
    then, current = Interview(THEN_ASKED.__getitem__), Interview((THEN_ASKED | now).__getitem__)
    found = list(refusals(then, current, migrated_tables))
    assert len(found) == len(lost), found
    assert all(sentence.startswith(start) for sentence, start in zip(found, lost, strict=True)), found


def test_a_shallow_clone_is_told_how_to_get_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(under_test, "ROOT", clone)
    first = "0" * 40
    with pytest.raises(LookupError, match=r"This clone is shallow .*git fetch --unshallow") as refusal:
        commit_of(first)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_commit_that_is_not_there_is_named() -> None:
    with pytest.raises(LookupError, match=re.escape("0" * 40)):
        commit_of("0" * 40)
