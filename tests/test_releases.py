"""No update loses a file or an answer without a word, from whichever release."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from updating.tables import Tables

from . import releases as under_test
from .releases import Migrated, Release, commit_of, losses, losses_since, releases
from .support import ROOT

NOTHING = Migrated(Tables(), {})


def told(**tables: Any) -> Migrated:
    return Migrated(Tables([tables]), tables.get("QUESTIONS", {}))


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


GONE = f"template/{GUARD} is gone, and no migration says where to"
DRAIN = "src/{{ package_name }}/production/drain.py"


@pytest.mark.parametrize(
    ("now", "migration", "lost"),
    [
        (THEN | {"docs/new.md"}, NOTHING, []),
        (THEN - {"src/{{ package_name }}/tools/weather.py"}, NOTHING, []),
        (THEN - {"docs/guard.md"}, NOTHING, ["template/docs/guard.md is gone, and no migration says where to"]),
        (THEN - {"docs/guard.md"}, told(GONE={"docs/guard.md": "See docs/auth.md."}), []),
        (THEN - {"docs/guard.md"}, told(GONE={"docs/**": "See docs/auth.md."}), []),
        (THEN - {GUARD} | {DOORMAN}, NOTHING, [GONE]),
        (THEN - {GUARD}, told(GONE={"docs/**": "See docs/auth.md."}), [GONE]),
        (THEN - {GUARD} | {DOORMAN}, told(MOVED={GUARD: DOORMAN}), []),
        (THEN - {GUARD}, told(MOVED={GUARD: DOORMAN}), [f"template/{GUARD} moved to {DOORMAN}, which is not there"]),
        (THEN - {GUARD}, told(MOVED={GUARD: DOORMAN}, GONE={DOORMAN: "Gone later."}), []),
        (THEN - {GUARD} | {DOORMAN, DRAIN}, told(SPLIT={GUARD: (DOORMAN, DRAIN)}), []),
        (
            THEN - {GUARD} | {DOORMAN},
            told(SPLIT={GUARD: (DOORMAN, DRAIN)}),
            [f"template/{GUARD} moved to {DRAIN}, which is not there"],
        ),
    ],
)
def test_a_path_that_vanished_is_a_loss_unless_a_migration_knows(
    now: set[str], migration: Migrated, lost: list[str]
) -> None:
    assert list(losses(THEN, set(), now, set(), migration)) == lost


def test_a_new_file_of_the_owners_is_a_loss_unless_a_migration_seeds_it() -> None:
    now = THEN | {"server.json", "src/{{ package_name }}/tools/another.py"}
    lost = ["template/server.json is new and the owner's, and no migration seeds it"]
    assert list(losses(THEN, set(), now, set(), NOTHING)) == lost
    assert list(losses(THEN, set(), now, set(), told(SEEDED=("server.json",)))) == []


@pytest.mark.parametrize(
    ("renamed", "lost"),
    [
        ({}, ["the question log_level is gone, and no migration says what becomes of its answer"]),
        ({"log_level": "verbosity"}, []),
        ({"log_level": None}, []),
        ({"log_level": "loudness"}, ["the question log_level became loudness, which is not asked"]),
    ],
)
def test_a_question_that_vanished_is_a_loss_unless_a_migration_knows(
    renamed: dict[str, str | None], lost: list[str]
) -> None:
    found = losses(set(), {"auth", "log_level"}, set(), {"auth", "verbosity"}, told(QUESTIONS=renamed))
    assert list(found) == lost


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
