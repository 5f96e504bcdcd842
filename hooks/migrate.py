"""Run the steps of an update around Copier's own, so that none of the owner's edits is lost or moved.

    python migrate.py before|after TEMPLATE COMMIT ANSWERS_FILE

TEMPLATE is the clone of the new version, COMMIT the version that the project came from, both as Copier gives them; the
project is the current folder. `before` rejects what would end half-way and renames answers. `after` merges each edited
file again, from the old rendering, the owner's file in the last commit and the new rendering: Copier itself applies a
patch with three lines of context, at the nearest place that matches. Then it runs the migrations
that the update brings, those whose file COMMIT lacks: no version number is compared, so a project that follows a
branch, or a template without tags, migrates like one that goes from release to release. hooks/migrations/README.md
says how a migration is written. Needs Copier's interpreter, since both versions are rendered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from post_generate import GO_BACK, ProjectError
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
            print(f"\nFAILED to update, and nothing has changed: {error}\n", file=sys.stderr)
        else:
            print(
                f"\nFAILED to migrate: {error}\nYour last commit has everything, and this goes back to it: {GO_BACK}\n",
                file=sys.stderr,
            )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
