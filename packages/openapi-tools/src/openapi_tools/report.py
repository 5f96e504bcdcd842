"""What of a document has no tool, or not all of it: nothing is dropped without a line here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Finding:
    kind: str
    pointer: str
    text: str


KINDS: dict[str, str] = {
    "authentication": "The credentials, and what is left for you to do",
    "skipped operation": "Operations without a tool",
    "deprecated": "Deprecated operations, left out; name one in the selection to have it",
    "name": "Names that had to change",
    "server": "Operations with a server of their own; their tools ask BASE_URL all the same",
    "parameter": "Parameters that are left out or sent otherwise than the document says",
    "request body": "Request bodies that are left out or sent otherwise",
    "response": "Answers that are given otherwise",
    "schema": "Rules of schemas that the models do not check; the API still does",
    "pattern": "Patterns that pydantic's engine lacks; the API still checks them",
    "test": "What the tests leave out",
    "reference": "References that lead nowhere; any value is accepted there",
}
"""Every kind of finding, in the report's order, with its heading."""


@dataclass
class Report:
    findings: dict[Finding, None] = field(default_factory=dict)

    def add(self, kind: str, pointer: str, text: str) -> None:
        """Takes a finding, once.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(kind)
        self.findings[Finding(kind, pointer, text)] = None

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, in the order of `KINDS`."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def sections(self) -> str:
        """The findings as Markdown, a heading for each kind; texts are code, so that nothing of a document acts."""
        lines: list[str] = []
        for kind in self.counts():
            lines += [f"## {kind.capitalize()}", "", f"{KINDS[kind]}.", ""]
            by_text: dict[str, list[str]] = {}
            for finding in self.findings:
                if finding.kind == kind:
                    by_text.setdefault(finding.text, []).append(finding.pointer)
            for text, pointers in by_text.items():
                if len(pointers) == 1:
                    lines.append(f"- {text}: {code(pointers[0])}")
                else:
                    lines += [f"- {text} ({len(pointers)} places):", *(f"  - {code(pointer)}" for pointer in pointers)]
            lines.append("")
        return "\n".join(lines)


def code(text: str) -> str:
    """`text` as code in Markdown."""
    plain = "".join(each if each.isprintable() else "?" for each in text).replace("`", "'")
    return f"`{plain[:400]}`"
