"""The document's security requirements, and the settings of the upstream client that meet them."""

from __future__ import annotations

from collections import Counter

from .document import Document, Node, UnresolvedReferenceError, as_list
from .parameters import HEADER_NAME
from .report import Report
from .text import single_line


class Security:
    """Reads the security requirements of operations and describes the credentials to set."""

    def __init__(self, document: Document, report: Report) -> None:
        self.document = document
        self.report = report
        self.schemes: dict[str, Node] = {}
        for name, node in document.root.get("components").get("securitySchemes").entries():
            try:
                self.schemes[name] = document.resolve(node)
            except UnresolvedReferenceError as error:
                report.add_unresolved("authentication", node, error)
        self.headers = frozenset(
            str(scheme.mapping.get("name", "")).lower()
            for scheme in self.schemes.values()
            if scheme.mapping.get("type") == "apiKey" and scheme.mapping.get("in") == "header"
        )
        """Headers, in lower case, that carry credentials."""
        self._operations_by_scheme: Counter[str] = Counter()

    def read(self, operation: Node) -> None:
        """Count the schemes that an operation accepts, and report requirements that the client cannot meet."""
        given = operation.mapping.get("security", self.document.root.mapping.get("security"))
        alternatives = [requirement for requirement in as_list(given) if isinstance(requirement, dict)]
        if not alternatives or {} in alternatives:  # no credentials are needed
            return
        for requirement in alternatives:
            self._operations_by_scheme.update(requirement.keys())
        if all(len(requirement) > 1 for requirement in alternatives):
            names = " and ".join(single_line(name, 40) for name in alternatives[0])
            text = f"requires {names} together; the client sends one of them"
            self.report.add("authentication", f"{operation.pointer}/security", text)

    def advice(self, key_variable: str) -> list[str]:
        """Return for each scheme that operations accept what to set, the most frequent one first.

        Args:
            key_variable: Names the variable that has the API's key.
        """
        lines: list[str] = []
        for name, count in self._operations_by_scheme.most_common():
            scheme = self.schemes.get(name)
            if scheme is None:
                text = f"{single_line(name, 60)} is not described"
                self.report.add("authentication", "#/components/securitySchemes", text)
            else:
                lines.append(f"{single_line(name, 60)} ({count} operations): {self._settings(scheme, key_variable)}")
        return lines

    def _settings(self, node: Node, key: str) -> str:
        """Return how to set the credentials of one scheme, and report what the client does not do."""
        mapping = node.mapping
        kind, scheme = mapping.get("type"), str(mapping.get("scheme", "")).lower()
        if kind == "apiKey" and (settings := _api_key_settings(node, key)):
            return settings
        if kind == "http" and scheme == "bearer":
            return f"set {key}; it is sent as Authorization: Bearer <key>"
        if kind == "http" and scheme == "basic":
            return f"set {key} to <user>:<password>, and UPSTREAM_API_KEY_SCHEME=Basic"
        if kind in ("oauth2", "openIdConnect"):
            text = "tokens are neither requested nor renewed; a token that you have is sent"
            self.report.add("authentication", node.pointer, text)
            return f"set {key} to an access token; getting and renewing one is left to you"
        if kind == "http" and HEADER_NAME.fullmatch(scheme):
            text = f"scheme {scheme}: the credentials are sent as given, nothing is computed"
            self.report.add("authentication", node.pointer, text)
            return f"set {key}, and UPSTREAM_API_KEY_SCHEME={scheme}; what has to be computed is left to you"
        self.report.add("authentication", node.pointer, f"type {single_line(str(kind), 40)!r} is not supported")
        return "not supported by the client; see docs/tools.md"


def _api_key_settings(node: Node, key: str) -> str:
    """Return how to set an API key, "" where the scheme has no place or no valid name."""
    place, name = node.mapping.get("in"), single_line(node.mapping.get("name"), 80)
    if place == "query" and name:
        return f"set {key}, and UPSTREAM_API_KEY_QUERY={name}"
    if not HEADER_NAME.fullmatch(name):
        return ""
    if place == "header" and name.lower() == "authorization":
        return (
            f"set {key}; it is sent as Authorization: Bearer <key>. "
            "With another scheme set UPSTREAM_API_KEY_SCHEME as well (none: the key alone)"
        )
    if place == "header":
        return f"set {key}, and UPSTREAM_API_KEY_HEADER={name}"
    if place == "cookie":
        return f"set {key} to {name}=<key>, and UPSTREAM_API_KEY_HEADER=Cookie"
    return ""
