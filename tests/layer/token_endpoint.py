"""A token endpoint on a real socket that issues a token for each request that it accepts."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from stand_in import Behavior, StandIn, respond, stand_in
from weather_station.production.config import ANSWERS


@dataclass
class TokenEndpoint:
    """The endpoint; its tokens are `<prefix>-1`, `<prefix>-2` and so on."""

    server: StandIn
    prefix: str = "minted-token-0123456789"
    expires_in: Any = 300
    release: threading.Event = field(default_factory=threading.Event)
    answers: list[Behavior] = field(default_factory=list)
    """Responses to the next requests, instead of a token."""

    @property
    def url(self) -> str:
        return f"{self.server.url}/token"

    @property
    def forms(self) -> list[dict[str, str]]:
        """The parameters of every request."""
        return [dict(parse_qsl(request.body.decode())) for request in self.server.requests]

    def settings(self, **changed: Any) -> dict[str, Any]:
        """Return the settings of a server that uses the endpoint."""
        return {
            "upstream_auth": ANSWERS["config"]["upstream_auth"],
            "upstream_token_url": self.url,
            "upstream_client_id": "mcp-server",
            "upstream_client_secret": "secret:of the+client",
        } | changed


@contextmanager
def token_endpoint() -> Iterator[TokenEndpoint]:
    """Serve in a thread until the block ends."""
    with stand_in() as server:
        endpoint = TokenEndpoint(server)
        endpoint.release.set()

        async def issue(reader: Any, writer: Any) -> None:
            number = len(server.requests)
            await asyncio.to_thread(endpoint.release.wait, 60)
            if endpoint.answers:
                await endpoint.answers.pop(0)(reader, writer)
                return
            document = {
                "access_token": f"{endpoint.prefix}-{number}",
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": endpoint.expires_in,
            }
            await respond(200, json.dumps(document).encode())(reader, writer)

        server.behave(issue)
        yield endpoint
