"""Checks that this commit can be a release of the template, and prints the commands that make it one.

    python3 with_uv.py run python -m tests.release 0.2.0 [--tested | --notes]

It changes nothing. Checked are: a clean tree on main; a version above the last; a section of CHANGELOG.md for it that
says what an update changes in a project, with nothing left under Unreleased; tests/releases.toml, whose commits exist,
are tagged and lie behind this one; no path or question lost without a migration. Last the whole test-suite runs, with
nothing skipped: what passed on another commit says nothing of this one, so there is no stamp to go stale. `--tested` is
for CI, which has run it in a step before. `--notes` only prints the text of the release: the version's section of
CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from .releases import commit_of, git, losses_since, releases
from .support import ROOT

BRANCH = "main"

UPDATE = "### What an update changes"
"""The heading under which a release's section says what happens to a project, and what to do by hand."""


def problems(version: str, changelog: str) -> Iterator[str]:
    """What stands in the way of a release, a line for each."""
    yield from problems_of_the_tree()
    yield from problems_of_the_version(version)
    yield from problems_of_the_changelog(version, changelog)
    yield from problems_of_the_list()


def problems_of_the_tree() -> Iterator[str]:
    if changed := git("status", "--porcelain"):
        yield f"the tree is not clean: {', '.join(line[2:].strip() for line in changed.splitlines()[:5])}"
    branch = git("branch", "--show-current")
    if branch != BRANCH:
        yield f"this is the branch {branch or '(none)'}; releases are made on {BRANCH}"


def problems_of_the_version(version: str) -> Iterator[str]:
    """Copier orders tags by PEP 440, and takes a pre-release only when asked."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        yield f"{version} is no version: three numbers such as 0.2.0"
        return
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"{version}: a release has three numbers and nothing else, such as 0.2.0"
    if releases() and wanted <= Version(releases()[-1].version):
        yield f"{version} is not above the last release, {releases()[-1].version}"
    if version in git("tag", "--list").split():
        yield f"the tag {version} is there already"


def sections_of(changelog: str) -> dict[str, str]:
    """Return the text of each version by its number."""
    return dict(re.findall(r"^## \[([^\]]+)\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL))


def problems_of_the_changelog(version: str, changelog: str) -> Iterator[str]:
    sections = sections_of(changelog)
    if version not in sections:
        yield f"CHANGELOG.md has no section ## [{version}] - <date>"
    elif not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md: the heading of {version} has no date: ## [{version}] - 2026-12-31"
    elif UPDATE not in sections[version]:
        yield f"CHANGELOG.md: the section of {version} has no heading {UPDATE!r}"
    if sections.get("Unreleased", "").strip():
        yield "CHANGELOG.md has entries under Unreleased: they belong to this release"


def problems_of_the_list() -> Iterator[str]:
    """Every release that was made is listed, and every one that is listed was made."""
    tags = git("tag", "--list").split()
    for release in releases():
        try:
            commit_of(release.commit)
        except LookupError as error:
            yield f"tests/releases.toml, {release.version}: {error}"
            continue
        if release.version not in tags:
            yield f"tests/releases.toml: {release.version} has no tag: git tag {release.version} {release.commit}"
        elif commit_of(release.version) != release.commit:
            yield f"tests/releases.toml: {release.version} is tagged elsewhere, at {commit_of(release.version)}"
        if git("merge-base", release.commit, "HEAD") != release.commit:
            yield f"tests/releases.toml: {release.version} does not lie behind this commit"
        yield from losses_since(release)
    listed = {release.version for release in releases()}
    for tag in tags:
        if re.fullmatch(r"\d+\.\d+\.\d+", tag) and tag not in listed:
            yield f"tests/releases.toml lacks the tag {tag}"


def tests_pass() -> bool:
    """Run all three sets of tests, in which nothing may be skipped, and return whether they pass."""
    sets: tuple[list[str], ...] = ([], ["-m", "acceptance"], ["-m", "release"])
    commands = ([sys.executable, "-m", "pytest", *options] for options in sets)
    environment = os.environ | {"CI": "true"}
    return all(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0 for command in commands)


def steps(version: str, commit: str) -> str:
    return "\n".join(
        [
            f"{version} can be released from {commit[:12]}:",
            "",
            f"    git tag --annotate {version} --message {version} {commit}",
            f"    git push origin {version}",
            "",
            "Then add to tests/releases.toml, and commit that:",
            "",
            "    [[release]]",
            f'    version = "{version}"',
            f'    commit = "{commit}"',
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version")
    parser.add_argument("--tested", action="store_true", help="the whole test-suite has passed on this very commit")
    parser.add_argument("--notes", action="store_true", help="only print the text of the release")
    options = parser.parse_args()
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if options.notes:
        notes = sections_of(changelog).get(options.version, "").strip()
        print(notes or f"CHANGELOG.md has no section of {options.version}", file=sys.stdout if notes else sys.stderr)
        return 0 if notes else 1
    try:
        found = list(problems(options.version, changelog))
        commit = commit_of("HEAD")
    except LookupError as error:
        found = [str(error)]
    if found:
        print("\n".join([f"{options.version} cannot be released:", *(f"- {problem}" for problem in found)]))
        return 1
    if not options.tested and not tests_pass():
        print(f"{options.version} cannot be released: the tests fail")
        return 1
    print(steps(options.version, commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
