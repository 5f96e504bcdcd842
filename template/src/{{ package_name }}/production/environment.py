"""Check variables that libraries read, so that a rejected value is reported in one line before the start."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import httpx2

from .. import IGNORED

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")


def tls_context() -> ssl.SSLContext:
    """Return the TLS context of all HTTP clients, since each of its own would load all certificates (60 ms)."""
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=1)
def _tls_context(file: str | None, directory: str | None) -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def problems() -> Iterator[str]:
    """Yield a line for each variable that the HTTP client cannot work with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, error in rejected(lambda: httpx2.AsyncClient(verify=context), PROXIES):
        if isinstance(error, ImportError):
            yield f"{name}: a SOCKS proxy needs a package: run uv add socksio"
        else:
            yield f"{name}: must be the URL of a proxy, such as http://proxy.example.com:3128"
    # The shared context reads both files, and its error does not say which one it is about.
    load = context.load_verify_locations if os.environ.get("SSLKEYLOGFILE") else lambda path: tls_context()
    for name, use in (
        ("SSL_CERT_FILE", load),
        ("SSLKEYLOGFILE", partial(setattr, context, "keylog_filename")),
    ):
        if path := os.environ.get(name):
            try:
                use(path)
            except OSError as error:  # SSLError is a subclass; its text is OpenSSL's, which names no file
                reason = "it has no certificate" if isinstance(error, ssl.SSLError) else error.strerror
                yield f"{name}: {path!r} cannot be used: {reason}"


def notices() -> Iterator[str]:
    """Yield a line for each variable of which a part is ignored."""
    for name, plugins in IGNORED.items():
        yield f"{name}: {plugins} is not installed and is ignored"


def rejected(build: Callable[[], object], names: Iterable[str]) -> list[tuple[str, Exception]]:
    """Return the variables that make `build` fail, each with the exception.

    These are the variables that the exception names, else each one that alone makes it fail, else all that are set.

    Args:
        build: Reads the variables. It is called once, and after a failure once more for each variable.
        names: The variables that it may read.
    """
    present = {name: os.environ[name] for name in names if name in os.environ}
    failure = _failure(build) if present else None
    if failure is None:
        return []
    if named := [(name, failure) for name in present if name in str(failure)]:
        return named
    failing = []
    try:
        for name in present:
            for other in present:
                os.environ.pop(other, None)
            os.environ[name] = present[name]
            if (error := _failure(build)) is not None:
                failing.append((name, error))
    finally:
        os.environ.update(present)
    return failing or [(name, failure) for name in present]


def _failure(build: Callable[[], object]) -> Exception | None:
    try:
        build()
    except Exception as error:
        return error
    return None
