"""Results of any size in projects of earlier versions: a limit could break a tool that works."""

from __future__ import annotations

import re
from pathlib import Path

ANSWERS_FILE = ".copier-answers.yml"


def before(project: Path) -> None:
    """Record that results have no limit, unless the answers say another one."""
    answers = project / ANSWERS_FILE
    text = answers.read_text(encoding="utf-8")
    if not re.search(r"^max_result_bytes:", text, re.MULTILINE):
        answers.write_text(text.rstrip("\n") + "\nmax_result_bytes: 0\n", encoding="utf-8")
