"""Identity: a caller is identified by its access token, else by its address, also behind trusted proxies."""

from typing import Any

import pytest

from weather_station.production.testing import Call, Server

from .support import tools


@pytest.mark.parametrize(
    ("proxies", "forwarded", "caller"),
    [
        ((), "203.0.113.7", "127.0.0.1"),
        (("127.0.0.0/8",), "203.0.113.7", "203.0.113.7"),
        (("127.0.0.0/8",), "10.9.9.9, 203.0.113.7, 127.0.0.2", "203.0.113.7"),
        (("127.0.0.0/8",), "nobody", "127.0.0.1"),
    ],
)
def test_the_caller_is_identified_by_its_address(proxies: tuple[str, ...], forwarded: str, caller: str) -> None:
    with Server(tools, trusted_proxies=proxies) as server:
        sender: Any = server.call("who", headers={"X-Forwarded-For": forwarded}).structured_content
    assert sender["id"] == caller


async def test_a_token_names_its_caller() -> None:
    call = Call(tools)
    result = await call("who", caller="alice", scopes=("read",))
    assert result.structured_content == {"id": "alice", "client": "alice", "scopes": ["read"]}
    result = await call("who")
    assert result.structured_content == {"id": "stdio", "client": None, "scopes": []}
