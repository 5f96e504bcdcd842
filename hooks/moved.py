"""Record a new URL of a project's template, after checking that updates can come from there.

    python3 moved.py URL [PROJECT]

Needs the standard library and git only, and changes one line of the project's .copier-answers.yml.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from post_generate import ANSWERS_FILE, SECRET, ProjectError, escaped, say

SOURCE = re.compile(r"^_src_path:.*$", re.MULTILINE)
COMMIT = re.compile(r"^_commit: ['\"]?(?:.*-g(?P<hash>[0-9a-f]+)|(?P<tag>.*?))['\"]?$", re.MULTILINE)
"""The recorded version: a tag, or the output of `git describe` for a commit after one."""


def move(project: Path, url: str) -> None:
    """Record `url` as the template's URL.

    Raises:
        ProjectError: no update can come from there, or `project` is not a project; nothing has changed.
    """
    answers = project / ANSWERS_FILE
    if not answers.is_file():
        raise ProjectError(f"{answers} is missing: pass the project's folder")
    text = answers.read_text(encoding="utf-8")
    recorded = COMMIT.search(text)
    if SECRET.search(url):
        raise ProjectError("the URL has credentials. Use ssh, or a credential helper of git, and the URL without them")
    if not recorded or not SOURCE.search(text):
        raise ProjectError(f"{answers} has no _commit or no _src_path, so that the project cannot be updated")
    commit = recorded["hash"] or recorded["tag"]
    with tempfile.TemporaryDirectory(prefix="template.") as folder:
        _git("clone", "--quiet", "--bare", url, folder)
        _git("-C", folder, "cat-file", "-e", "HEAD:copier.yml", reason="it has no copier.yml")
        _git(
            "-C",
            folder,
            "rev-parse",
            "--verify",
            "--quiet",
            f"{commit}^{{commit}}",
            reason=f"it does not have {commit}",
        )
    quoted = "'" + url.replace("'", "''") + "'"
    answers.write_text(SOURCE.sub(lambda _: f"_src_path: {quoted}", text), encoding="utf-8")


def _git(*arguments: str, reason: str = "") -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        raise ProjectError(f"no update can come from there: {reason or done.stderr.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="where the template is now, as `copier copy` would take it")
    parser.add_argument("project", nargs="?", type=Path, default=Path())
    options = parser.parse_args()
    try:
        move(options.project, options.url)
    except ProjectError as error:
        say(f"FAILED, and nothing has changed: {error}")
        return 1
    print(escaped(f"{options.project / ANSWERS_FILE} names {options.url} now. Commit it."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
