"""Write the tables of docs/reference.md that are generated from other files, between their markers.

    uv run python -m tests.tables

Features come from the pages in `template/docs/` (heading and first sentence),
questions from `copier.yml`, variables from `.env.example` as the variants have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .support import EVERYTHING, ROOT, Answers, choices, questions, render_file

REFERENCE = ROOT / "docs" / "reference.md"
OPERATIONS = ("RUNBOOK.md.jinja", "deployment.md.jinja")
"""Pages that belong to no feature; the reference links them elsewhere."""

EXAMPLE = "examples/weather-station"
"""Where a page that depends on the answers is linked, as the default project has it."""


def feature_rows() -> Iterator[str]:
    yield "| page | topic |"
    yield "|---|---|"
    pages = [*(ROOT / "template" / "docs").glob("*.md"), *(ROOT / "template" / "docs").glob("*.md.jinja")]
    for page in sorted(pages):
        if page.name not in OPERATIONS:
            title, text = page.read_text("utf-8").split("\n", 1)
            folder = EXAMPLE if page.suffix == ".jinja" else "template"
            link = f"../{folder}/docs/{page.name.removesuffix('.jinja')}"
            yield f"| [{title.removeprefix('# ')}]({link}) | {first_sentence(text)} |"


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    match = re.match(r".*?\.(?= |$)", paragraph)
    sentence = match[0] if match else paragraph
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", sentence).rstrip(".:")


def question_rows() -> Iterator[str]:
    yield "| question | default | what it decides |"
    yield "|---|---|---|"
    for name, question in questions().items():
        default = " ".join(str(question["default"]).split())
        default_text = "by profile or name" if "{" in default else f"`{default}`" if default else "empty"
        yield f"| `{name}` | {default_text} | {question['help']} |"


def variable_rows() -> Iterator[str]:
    yield "| for | variables |"
    yield "|---|---|"
    sections: dict[str, dict[str, None]] = {}
    changes = [{"upstream_auth": credentials} for credentials in choices(questions()["upstream_auth"])]
    for change in [*changes, {"auth": "oauth"}]:
        for section, name in example_variables(EVERYTHING | {"upstream_api_key_env": "API_KEY"} | change):
            sections.setdefault(section, {})[name] = None
    for section, names in sections.items():
        yield f"| {section} | {' '.join(f'`{name}`' for name in names)} |"


def example_variables(data: Answers) -> Iterator[tuple[str, str]]:
    """Yield section and name of each variable in the `.env.example` of a variant."""
    section = ""
    for line in render_file(".env.example", data).splitlines():
        if heading := re.match(r"# --- (.*?) -+$", line):
            section = heading[1]
        if variable := re.match(r"#?([A-Z][A-Z0-9_]+)=", line):
            yield section, variable[1]


TABLES = {"features": feature_rows, "questions": question_rows, "variables": variable_rows}


def with_tables(text: str) -> str:
    """Return `text` with each table between its markers replaced."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}" + "".join(f"{row}\n" for row in rows()) + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    REFERENCE.write_text(with_tables(REFERENCE.read_text("utf-8")), "utf-8")
