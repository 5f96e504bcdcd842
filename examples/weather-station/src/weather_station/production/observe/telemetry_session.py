"""The HTTP client of the exporters: a collector that redirects is an error, and its responses are bounded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .telemetry_settings import otel_environment

MAX_BODY = 65_536
"""Bytes of a body that is read, which keeps the connection."""

MAX_LOCATION = 200
"""Characters of the address of a redirect in an error."""


def collector_session() -> Any:
    """Return a `requests.Session` for an exporter; `None` where a variable names the owner's, which it loads then."""
    if any("CREDENTIAL_PROVIDER" in name for name in otel_environment()):
        return None
    # Imported here, like the exporters; a project that exports over gRPC only does not have it.
    session = import_module("requests").Session()
    session.stream = True
    session.hooks["response"].append(_checked)
    return session


def _checked(response: Any, **options: Any) -> None:
    """Read the body of a response, or close the connection if the body is too long or of unknown length.

    Raises:
        RequestException: it is a redirect, which exporters take for a success and do not follow.
    """
    if 300 <= response.status_code < 400:
        response.close()
        raise import_module("requests").RequestException(_redirected(response))
    length = response.raw.length_remaining
    try:
        if length is not None and length <= MAX_BODY:
            response.raw.read(decode_content=False)
    except Exception:  # the status counts: what the collector has accepted is not sent again
        length = None
    if length is None or length > MAX_BODY:
        response.close()


def _redirected(response: Any) -> str:
    status = f"HTTP {response.status_code}"
    location = response.headers.get("location")
    if not location:
        return f"the collector answers {status}, which is no success"
    return f"the collector redirects to {location[:MAX_LOCATION]} ({status}): set the endpoint to that server"
