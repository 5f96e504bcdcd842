"""Run the stages of an update before and after Copier's own, so that no edit of the owner is lost or misplaced.

    python migrate.py before|after TEMPLATE COMMIT ANSWERS_FILE

TEMPLATE is the clone of the new version, COMMIT the version that the project came from, both as Copier gives them; the
project is the current folder. `before` rejects an update that could not be completed, migrates answers, and starts a
process that renders both versions. Meanwhile Copier writes the answers only: it would render three times, and apply
edits as patches with three lines of context at the nearest matching place. `after` writes all other files, and merges
edited ones from the old rendering, the owner's file in the last commit and the new rendering. Then it runs the
migrations of the update, which are those that COMMIT lacks: no version number is compared, so a project on a branch, or
of a template without tags, migrates like one on releases.

hooks/migrations/README.md describes migrations. It runs in Copier's interpreter, because it renders both versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from post_generate import GO_BACK, ProjectError, say
from updating.update import Update


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=("before", "after"))
    parser.add_argument("template", type=Path)
    parser.add_argument("commit")
    parser.add_argument("answers_file")
    options = parser.parse_args(arguments)
    update = Update(Path.cwd(), options.template, options.commit, options.answers_file)
    try:
        if options.stage == "before":
            update.before()
        else:
            update.after()
    except ProjectError as error:
        if options.stage == "before":
            say(f"\nFAILED to update, and nothing has changed: {error}\n")
        else:
            say(f"\nFAILED to migrate: {error}\nYour last commit is unchanged; return to it with: {GO_BACK}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
