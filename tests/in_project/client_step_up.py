"""The Python SDK's OAuth client, which gets a further scope when a tool needs one.

    python client_step_up.py URL USER TOOL ARGUMENTS TOOL ARGUMENTS ...

calls the tools one after the other, and prints their texts and the scopes that each sign-in has asked for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from urllib.parse import parse_qs, urlsplit

import httpx2
from client_sign_in import CALLBACK, Storage, User
from mcp.client.auth import OAuthClientProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

KNOWN = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "client_secret_basic"}


class RecordingUser(User):
    """Signs in, and keeps the scopes that were asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: list[str] = []

    async def open(self, url: str) -> None:
        self.asked += parse_qs(urlsplit(url).query)["scope"]
        self.answer = {}
        await super().open(url)


async def main(url: str, name: str, *calls: str) -> None:
    user, storage = RecordingUser(name), Storage()
    storage.client = OAuthClientInformationFull.model_validate(
        KNOWN | {"client_id": "connector", "client_secret": "secret of connector"}
    )
    provider = OAuthClientProvider(url, OAuthClientMetadata.model_validate(KNOWN), storage, user.open, user.come_back)
    texts = []
    async with (
        httpx2.AsyncClient(auth=provider, timeout=30, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        for tool, arguments in zip(calls[::2], calls[1::2], strict=True):
            result = await client.call_tool(tool, json.loads(arguments))
            texts.append("\n".join(block.text for block in result.content))
    print(json.dumps({"asked": user.asked, "texts": texts}))


asyncio.run(main(*sys.argv[1:]))
