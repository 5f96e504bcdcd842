"""The share of one caller in the connections to the upstream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from harness import (
    DEADLINE_SECONDS,
    HEADERS,
    NO_TLS,
    ONE_ATTEMPT,
    Running,
    Serve,
    add_fetch,
    has,
    result_of,
    text_of,
    wait_for,
)
from stand_in import StandIn, hold, respond, stand_in
from weather_station.production.upstream import client

PATIENT: dict[str, Any] = {"attempt_timeout_seconds": 60.0, "request_timeout_seconds": 60.0}


@pytest.fixture
def api() -> Iterator[StandIn]:
    with stand_in() as api:
        yield api


def fetch_as(server: Running, caller: int) -> str:
    """Call `fetch` over a connection of its own as the caller with this number."""
    headers = HEADERS | {"x-forwarded-for": f"192.0.2.{caller}"}
    with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as http:
        return text_of(result_of(http.post(server.url, json=server.request("fetch", {"path": "/"}), headers=headers)))


@pytest.mark.parametrize("connections", [1, 4, 8, 19])
def test_slow_calls_of_one_caller_leave_connections_to_the_others(
    connections: int, api: StandIn, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_CONNECT_SECONDS", 3.0)
    share = max(1, connections // 4)
    calls = connections + 2
    release = threading.Event()
    api.behave(hold(release))
    settings = {"max_connections": connections, "trusted_proxies": "127.0.0.1", "upstream_base_url": api.url}
    with serve(add_fetch, **settings, **PATIENT, **ONE_ATTEMPT) as server, ThreadPoolExecutor(calls) as pool:
        running = [pool.submit(fetch_as, server, 1) for _ in range(calls)]
        wait_for(lambda: sum(call.done() for call in running) == calls - share)
        wait_for(lambda: len(api.requests) == share)
        for call in running:
            if call.done():
                assert f"{share} requests of this caller are running" in call.result()
                assert "MAX_CONNECTIONS" in call.result()
        if connections > share and has("inbound.identity"):
            api.behave(respond())
            assert "ok" in fetch_as(server, 2)
        release.set()
        assert sum("ok" in call.result() for call in running) == share
        assert "ok" in fetch_as(server, 1)


def test_a_caller_that_waits_gets_the_next_free_connection(api: StandIn, serve: Serve) -> None:
    release = threading.Event()
    api.behave(hold(release), respond())
    settings = {"max_connections": 4, "trusted_proxies": "127.0.0.1", "upstream_base_url": api.url}
    with serve(add_fetch, **settings, **PATIENT, **ONE_ATTEMPT) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch_as, server, 1)
        wait_for(lambda: len(api.requests) == 1)
        second = pool.submit(fetch_as, server, 1)
        release.set()
        assert "ok" in first.result()
        assert "ok" in second.result()
