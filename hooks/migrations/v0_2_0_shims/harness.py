"""Deprecated helpers for tests of OpenAPI tools that version 0.1.0 generated: use the fixture `server` instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from my_server.production.testing import Server


class Running:
    """A server with the project's tools."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool and return the result as sent to the client."""
        return self._server.call(tool, arguments).model_dump(mode="json", by_alias=True, exclude_none=True)


def config(**settings: Any) -> dict[str, Any]:
    return settings


@contextmanager
def running(settings: dict[str, Any]) -> Iterator[Running]:
    with Server(**settings) as server:
        yield Running(server)


def text_of(result: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])
