"""The servers of a document, compared with the server that the tools call."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from .document import Document, Node
from .loading import is_url
from .text import single_line

MAX_LISTED = 5


def problem_with_base_url(document: Document, base_url: str) -> str:
    """Return how `BASE_URL` differs from the servers of the document, "" where it is one of them, or none is known."""
    absolute = server_urls(document)
    if not base_url or not absolute or any(_same(base_url, url) for url in absolute):
        return ""
    listed = ", ".join(single_line(url, 200) for url in absolute[:MAX_LISTED])
    own = urlsplit(base_url.rstrip("/"))
    hint = ""
    if any(urlsplit(url).netloc == own.netloc and urlsplit(url).path.rstrip("/") != own.path for url in absolute):
        hint = " The host is the same and the path is not: requests may lack a part of their path, or have it twice."
    return f"BASE_URL is {single_line(base_url, 200)}, and the document names {listed}.{hint}"


def server_urls(document: Document) -> list[str]:
    """Return the absolute URLs of the document's servers, with the defaults of their variables."""
    servers = [url for url in map(_url, document.root.get("servers").elements()) if url]
    servers = [urljoin(document.location, url) if is_url(document.location) else url for url in servers]
    return list(dict.fromkeys(url.rstrip("/") for url in servers if is_url(url)))


def _url(server: Node) -> str:
    """Return the URL of a server with the defaults of its variables."""
    url = server.mapping.get("url")
    variables = server.get("variables")

    def default(match: re.Match[str]) -> str:
        return str(variables.get(match[1]).mapping.get("default", match[0]))

    return re.sub(r"\{([^{}]*)\}", default, url) if isinstance(url, str) else ""


def _same(one: str, other: str) -> bool:
    return re.sub(r"^https?:", "", one).rstrip("/").lower() == re.sub(r"^https?:", "", other).rstrip("/").lower()
