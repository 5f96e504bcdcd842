"""Media types of request and response bodies."""

from __future__ import annotations

import re
from typing import Literal

BodyKind = Literal["json", "lines", "form", "multipart", "text", "binary"]

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
ANY = "*/*"

TEXT_TYPES = frozenset(
    """
    application/xml application/xml-dtd application/yaml application/x-yaml application/toml application/javascript
    application/sdp application/jsonl application/x-jsonl application/x-ndjson application/x-jsonlines
    application/graphql application/csv application/sql application/jwt application/jose application/text
    """.split()
)
"""Media types outside `text/` whose content is text."""

BINARY_TYPES = re.compile(
    r"(image|audio|video|font|model|message)/.*|application/(x-)?(octet-stream|binary|pdf|zip|zip-compressed|gzip|tar|dicom"
    r"|msword|rtf|vnd\.(ms-|openxmlformats|oasis\.opendocument).*)"
)
"""Media types of files, whatever the document's schema says."""

JSON_LINES = frozenset(("jsonl", "x-jsonl", "ndjson", "x-ndjson", "x-jsonlines", "jsonlines", "json-seq"))

YAML = re.compile(r"(application|text)/((x|vnd)[-.])?yaml|.*\+yaml")

MISNAMED = (
    (re.compile(r"(application)?(multipart)?x?(www)?formdata|multipart(x?form)?"), MULTIPART),
    (re.compile(r"(application)?x?(www)?form|.*urlencoded?"), FORM),
    (re.compile(r"plaintext|text(plain)?"), "text/plain"),
    (re.compile(r"(application)?x?json"), JSON),
    (re.compile(r"(application)?xml"), "application/xml"),
)
"""What names mean that are not registered, by their letters: `application/form-data`, `json`, `plain/text`."""

PARAMETER = re.compile(r"""\s*([\w!#$%&'*+.^`|~-]+)=([\w!#$%&'*+.^`|~/:-]+|"[ !#-\[\]-~]*")\s*""", re.ASCII)


def without_parameters(media_type: str) -> str:
    """Return `application/json` for `Application/JSON; charset=utf-8`."""
    return media_type.partition(";")[0].strip().lower()


def parameters_of(media_type: str) -> str:
    """Return the parameters in the form that is sent, such as `;version=1`.

    Without `charset` and `boundary`, which the body itself decides, and without what is not a parameter.
    """
    matches = [PARAMETER.fullmatch(text) for text in media_type.split(";")[1:]]
    pairs = [(match[1], match[2]) for match in matches if match]
    return "".join(f";{name}={value}" for name, value in pairs if name.lower() not in ("charset", "boundary"))


def standard_name(media_type: str) -> str:
    """Return the media type or range that a name of a document means, in lower case and without parameters.

    Some documents have names that are not registered, such as `application/form-data`, and others that are not media
    types, such as `json`. One that says nothing is any media type.
    """
    plain = without_parameters(media_type)
    letters = re.sub(r"[^a-z]", "", plain)
    if plain not in (FORM, MULTIPART) and not re.search(r"[./+-]json$", plain):
        for names, meant in MISNAMED:
            if names.fullmatch(letters) and plain != meant and not plain.startswith("text/"):
                return meant
    return plain if is_media_type(plain.replace("*", "x")) else ANY


def is_media_type(text: str) -> bool:
    name, _, subtype = text.partition("/")
    return text.isascii() and all(
        part and all(char.isalnum() or char in "!#$&^_.+-" for char in part) for part in (name, subtype)
    )


def is_json(media_type: str) -> bool:
    plain = standard_name(media_type)
    return plain == ANY or re.search(r"[/+.-]json$", plain) is not None


def is_json_lines(media_type: str) -> bool:
    """Return whether the content is a sequence of JSON values, each on a line of its own."""
    subtype = without_parameters(media_type).rpartition("/")[2]
    return subtype in JSON_LINES or subtype.endswith("+json-seq")


def is_text(media_type: str) -> bool:
    plain = standard_name(media_type)
    return plain.startswith("text/") or plain.endswith(("+xml", "+yaml")) or plain in TEXT_TYPES


def body_kind(media_type: str, *, is_structured: bool) -> BodyKind | None:
    """Return how a request body of this media type is written, None where it is not known.

    Args:
        media_type: A media type of the document; one of the ranges `*/*` and `application/*` is read as JSON.
        is_structured: Whether the schema describes an object or list. It is written where the type has a way for it:
            as JSON, which YAML contains, or as a form.
    """
    plain = standard_name(media_type)
    if is_json_lines(media_type):
        return "lines"
    if is_json(media_type) or plain == "application/*" or (is_structured and YAML.fullmatch(plain)):
        return "json"
    if plain == FORM:
        return "form"
    if plain.startswith("multipart/"):
        return "multipart"
    if is_text(media_type):
        return "json" if is_structured and plain in ("text/plain", "text/*") else "text"
    return None if is_structured and not BINARY_TYPES.fullmatch(plain) else "binary"


def content_type(media_type: str, kind: BodyKind) -> str:
    """Return the Content-Type header for a media type of the document, which may be a range.

    A range of files, such as `image/*`, stays: the caller names the type of the file.
    """
    plain = standard_name(media_type)
    if plain in (ANY, "application/*"):
        return {"json": JSON, "text": "text/plain"}.get(kind, "application/octet-stream")
    if "*" in plain and kind != "binary":
        ranges = {"multipart/*": MULTIPART, "text/*": "text/plain"}
        return ranges.get(plain, f"application/{plain.rpartition('+')[2]}")
    return plain + (parameters_of(media_type) if kind != "multipart" else "")


def accept_header(media_type: str) -> str:
    """Return the Accept header for a response of this media type, "" where the client's own header will do."""
    plain = media_type.partition(";")[0].strip()
    accepted = plain + parameters_of(media_type)
    return accepted if accepted.lower() not in (JSON, ANY) and is_media_type(plain) else ""
