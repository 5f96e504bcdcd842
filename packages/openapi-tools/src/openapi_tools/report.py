"""The findings about a document: whatever is left out or changed is a finding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .document import Node, UnresolvedReferenceError


@dataclass(frozen=True, order=True)
class Finding:
    kind: str
    """A key of `KINDS`."""
    pointer: str
    """The place in the document, a JSON pointer."""
    text: str


KINDS: dict[str, str] = {
    "authentication": "Credentials, and what remains to be done about them",
    "base url": "Where the tools send their requests",
    "skipped operation": "Operations without a tool",
    "deprecated": "Deprecated operations, which are left out; name one in the selection to include it",
    "name": "Names that had to change",
    "server": "Operations with a server of their own; their tools call BASE_URL nevertheless",
    "parameter": "Parameters that are left out or sent in another form than the document describes",
    "header": "Headers that are not arguments: they are settings of the server, or always have the same value",
    "scope": "Scopes that the tools do not need, because they cannot be expressed",
    "request body": "Request bodies that are left out or sent in another form",
    "response": "Responses that are returned in another form",
    "schema": "Rules of schemas that the models do not check; the API still does",
    "pattern": "Patterns that pydantic's regular expressions do not support; the API still checks them",
    "size": "Tools whose schemas are too large; the deepest parts accept any value",
    "test": "Operations that the generated tests leave out, or call without some arguments",
    "reference": "References that cannot be resolved; any value is accepted in their place",
}
"""The heading of each kind of finding, in the report's order."""

MAX_CODE = 400


@dataclass
class Report:
    """Findings in the order in which they were made, each once."""

    findings: dict[Finding, None] = field(default_factory=dict)

    def add(self, kind: str, pointer: str, text: str) -> None:
        """Add a finding.

        Raises:
            ValueError: `kind` is not in `KINDS`.
        """
        if kind not in KINDS:
            raise ValueError(kind)
        self.findings[Finding(kind, pointer, text)] = None

    def add_unresolved(self, kind: str, node: Node, error: UnresolvedReferenceError) -> None:
        """Add that the reference at `node` cannot be resolved."""
        self.add(kind, node.pointer, error.problem if error.pointer == node.pointer else str(error))

    def texts(self, kind: str) -> list[str]:
        """Return the texts of the findings of a kind."""
        return [finding.text for finding in self.findings if finding.kind == kind]

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind that has any, in the order of `KINDS`."""
        counter = Counter(finding.kind for finding in self.findings)
        return {kind: counter[kind] for kind in KINDS if kind in counter}

    def to_markdown(self) -> str:
        """Return the findings as Markdown, with a heading for each kind and one entry for equal texts."""
        lines: list[str] = []
        for kind in self.counts():
            lines += [f"## {kind.capitalize()}", "", f"{KINDS[kind]}.", ""]
            pointers_by_text: dict[str, list[str]] = {}
            for finding in self.findings:
                if finding.kind == kind:
                    pointers_by_text.setdefault(finding.text, []).append(finding.pointer)
            for text, pointers in pointers_by_text.items():
                if len(pointers) == 1:
                    lines.append(f"- {text}: {markdown_code(pointers[0])}")
                else:
                    lines.append(f"- {text} ({len(pointers)} places):")
                    lines += [f"  - {markdown_code(pointer)}" for pointer in pointers]
            lines.append("")
        return "\n".join(lines)


def markdown_code(text: str) -> str:
    """Return an untrusted text as inline code, so that no markup in it takes effect."""
    printable = "".join(char if char.isprintable() else "?" for char in text).replace("`", "'")
    return f"`{printable[:MAX_CODE]}`"
