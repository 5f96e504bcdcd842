"""Check that this commit can be released, and print the commands that release it.

    python3 with_uv.py run python -m tests.release 0.2.0 [--tested | --notes]

It changes nothing. It checks that the tree is clean and on main; that the version is above the last one; that
CHANGELOG.md has a section for it with what an update changes in a project, and nothing under Unreleased; that the
commits in tests/releases.toml exist, are tagged and are ancestors of this one; and that no path or question is lost
without a migration. Then all tests run, and none may be skipped. `--tested` is for CI, which has run them in an
earlier step. `--notes` only prints the text of the release: the version's section of CHANGELOG.md.
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
"""Heading of the part of a release's section on what an update changes in a project."""


def problems(version: str, changelog: str) -> Iterator[str]:
    """Yield a line for each reason why the version cannot be released."""
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
    """Yield problems with the version; Copier orders tags by PEP 440, and skips pre-releases by default."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        yield f"{version} is not a version; use three numbers such as 0.2.0"
        return
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"{version}: a release has three numbers and nothing else, such as 0.2.0"
    if releases() and wanted <= Version(releases()[-1].version):
        yield f"{version} is not above the last release, {releases()[-1].version}"
    if version in git("tag", "--list").split():
        yield f"the tag {version} already exists"


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
    """Yield a line for each release that is listed and not tagged, or tagged and not listed."""
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
            yield f"tests/releases.toml: {release.version} is not an ancestor of this commit"
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
        problems_found = list(problems(options.version, changelog))
        commit = commit_of("HEAD")
    except LookupError as error:
        problems_found = [str(error)]
    if problems_found:
        print("\n".join([f"{options.version} cannot be released:", *(f"- {problem}" for problem in problems_found)]))
        return 1
    if not options.tested and not tests_pass():
        print(f"{options.version} cannot be released: the tests fail")
        return 1
    print(steps(options.version, commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
