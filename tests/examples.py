"""Write examples/: the projects that the template makes, for those who read before they generate.

    python3 with_uv.py run python -m tests.examples

replaces them by what the working tree renders, without what the hook makes (lock file, environment, secrets). After a
change of the template the difference in `examples/` is what an owner of an unchanged project gets by an update.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from copier import run_copy

from .support import ANSWERS_FILE, DEFAULT, ROOT, Answers, copy_template, files

EXAMPLES = ROOT / "examples"
PROJECTS: dict[str, Answers] = {"weather-station": DEFAULT}
"""The answers of each folder in examples/."""

SOURCE = re.compile(rb"^(_commit|_src_path): .*\n", re.MULTILINE)
"""Lines of the answers file that say where the template was; here it is this repository."""


def expected(rendered: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of an example, given those of the project as it was rendered."""
    return {path: SOURCE.sub(b"", text) if path == ANSWERS_FILE else text for path, text in rendered.items()}


def write(folder: Path, content: Mapping[str, bytes]) -> None:
    """Replace a folder by these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in content.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)


def main() -> None:
    for name, data in PROJECTS.items():
        with tempfile.TemporaryDirectory() as place:
            template, project = Path(place) / "template", Path(place) / name
            template.mkdir()
            copy_template(template)
            run_copy(str(template), project, data=data, defaults=True, skip_tasks=True, quiet=True)
            write(EXAMPLES / name, expected(files(project)))


if __name__ == "__main__":
    main()
