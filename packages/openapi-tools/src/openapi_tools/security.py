"""The document's security requirements, and the settings of the upstream client that meet them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from .document import Document, Node, UnresolvedReferenceError, as_list
from .fixed_headers import FixedHeader
from .parameters import HEADER_NAME
from .report import Report
from .text import single_line

KEY_NAME = re.compile(r"secret|token|key", re.IGNORECASE)
"""Names of headers of which the first counts as the API's key, where an API has several headers with credentials."""

SCOPE = re.compile(r"[!#-\[\]-~]+")
"""The syntax of a scope (RFC 6749, section 3.3)."""


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
        self.further_headers: dict[str, FixedHeader] = {}
        """Headers with credentials beside the first, by their names in lower case."""
        self._operations_by_scheme: Counter[str] = Counter()

    def read(self, operation: Node) -> None:
        """Count the schemes that an operation accepts, and report requirements that the client cannot meet."""
        alternatives = self._alternatives(operation)
        for requirement in alternatives:
            self._operations_by_scheme.update(requirement.keys())
        if all(len(requirement) > 1 for requirement in alternatives) and alternatives:
            names = [*alternatives[0]]
            headers = [header for name in names if (header := self._header_of(name))]
            others = len(names) - len(headers)
            if not others:  # the client's own setting has one of the headers
                headers.remove(next((each for each in headers if KEY_NAME.search(each)), headers[0]))
            for header in headers:
                is_secret = "version" not in header.lower()
                self.further_headers[header.lower()] = FixedHeader(header, is_secret=is_secret, is_required=True)
            if others > 1:
                text = f"requires {' and '.join(single_line(name, 40) for name in names)} together"
                self.report.add("authentication", f"{operation.pointer}/security", f"{text}; the client sends one")

    def scopes_of(self, operation: Node) -> tuple[str, ...]:
        """Return the scopes that all alternatives of an operation need, and report those that are no scopes."""
        sets = []
        for requirement in self._alternatives(operation):
            of_schemes = [scope for scopes in requirement.values() for scope in as_list(scopes)]
            sets.append(dict.fromkeys(scope for scope in of_schemes if isinstance(scope, str)))
        if not sets:
            return ()
        common = [scope for scope in min(sets, key=len) if all(scope in each for each in sets)]
        pointer = f"{operation.pointer}/security"
        if len(common) < min(map(len, sets)):
            self.report.add("scope", pointer, "its alternatives need different scopes: those that all need are kept")
        valid = [scope for scope in common if SCOPE.fullmatch(scope)]
        if len(valid) < len(common):
            self.report.add("scope", pointer, "a scope has characters that RFC 6749 does not allow")
        return tuple(valid)

    def _alternatives(self, operation: Node) -> list[dict[str, Any]]:
        """Return the security requirements of an operation, of which it needs one; none where it needs none."""
        given = operation.mapping.get("security", self.document.root.mapping.get("security"))
        alternatives = [requirement for requirement in as_list(given) if isinstance(requirement, dict)]
        return [] if {} in alternatives else alternatives

    def _header_of(self, name: str) -> str:
        """Return the header of a scheme with an API key, "" for other schemes."""
        mapping = self.schemes[name].mapping if name in self.schemes else {}
        header = str(mapping.get("name", "")) if mapping.get("in") == "header" else ""
        return header if mapping.get("type") == "apiKey" and HEADER_NAME.fullmatch(header) else ""

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
                lines.append(
                    f"{single_line(name, 60)} ({count} operations): {self._settings(name, scheme, key_variable)}"
                )
        return lines

    def _settings(self, name: str, node: Node, key: str) -> str:
        """Return how to set the credentials of one scheme, and report what the client does not do."""
        mapping = node.mapping
        kind, scheme = mapping.get("type"), str(mapping.get("scheme", "")).lower()
        further = self.further_headers.get(self._header_of(name).lower())
        if further is not None:
            return f"set {further.setting}={further.name}:<value>"
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
