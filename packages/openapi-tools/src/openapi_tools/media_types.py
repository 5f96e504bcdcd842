"""Media types of request and response bodies."""

from __future__ import annotations

from typing import Literal

BodyKind = Literal["json", "lines", "form", "multipart", "text", "binary"]

TEXT_TYPES = frozenset(
    """
    application/xml application/yaml application/x-yaml application/javascript application/sdp application/jsonl
    application/x-jsonl application/x-ndjson application/x-jsonlines application/graphql application/csv
    """.split()
)
"""Media types outside `text/` whose content is text."""


JSON_LINES = frozenset(("jsonl", "x-jsonl", "ndjson", "x-ndjson", "x-jsonlines", "jsonlines", "json-seq"))


def without_parameters(media_type: str) -> str:
    """Return `application/json` for `Application/JSON; charset=utf-8`."""
    return media_type.partition(";")[0].strip().lower()


def is_media_type(text: str) -> bool:
    name, _, subtype = text.partition("/")
    return text.isascii() and all(
        part and all(char.isalnum() or char in "!#$&^_.+-" for char in part) for part in (name, subtype)
    )


def is_json(media_type: str) -> bool:
    plain = without_parameters(media_type)
    return plain in ("application/json", "*/*", "text/json") or plain.endswith("+json")


def is_json_lines(media_type: str) -> bool:
    """Return whether the content is a sequence of JSON values, each on a line of its own."""
    subtype = without_parameters(media_type).rpartition("/")[2]
    return subtype in JSON_LINES or subtype.endswith("+json-seq")


def is_text(media_type: str) -> bool:
    plain = without_parameters(media_type)
    return plain.startswith("text/") or plain.endswith(("+xml", "+yaml")) or plain in TEXT_TYPES


def body_kind(media_type: str) -> BodyKind:
    """Return how a request body of this media type is written."""
    plain = without_parameters(media_type)
    if is_json(media_type):
        return "json"
    if is_json_lines(media_type):
        return "lines"
    if plain == "application/x-www-form-urlencoded":
        return "form"
    if plain.startswith("multipart/"):
        return "multipart"
    return "text" if is_text(media_type) else "binary"


def accept_header(media_type: str) -> str:
    """Return the Accept header for a response of this media type, "" where the client's own header will do."""
    plain = media_type.partition(";")[0].strip()
    return plain if plain not in ("application/json", "*/*") and is_media_type(plain) else ""
