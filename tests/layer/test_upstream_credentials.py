"""Credentials of the upstream: how the key is sent, and where it never appears."""

from __future__ import annotations

from base64 import b64encode

import pytest

from harness import ONE_ATTEMPT, Serve, add_fetch, config, opened
from stand_in import StandIn, reset, respond, stand_in
from weather_station.production.config import ConfigError
from weather_station.production.upstream.errors import UpstreamResponseError
from weather_station.server import create_server

HIDDEN = "s3cr3t-value"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of a server with a key."""
    monkeypatch.setenv("UPSTREAM_TEST_KEY", f" {HIDDEN}\n")
    return ONE_ATTEMPT | {"upstream_api_key_env": "UPSTREAM_TEST_KEY"}


async def test_the_key_is_sent_to_the_base_url_only(key: dict[str, str], api: StandIn) -> None:
    with stand_in() as other:
        async with opened(f"{api.url}/v1", **key) as runtime:
            await runtime.upstream.get_json("/path")
            await runtime.upstream.get_json(f"{api.url}/by-its-url")
            await runtime.upstream.get_json(f"{other.url}/elsewhere")
        assert [request.headers.get("authorization") for request in api.requests] == [f"Bearer {HIDDEN}"] * 2
        assert "authorization" not in other.requests[0].headers


async def test_the_key_in_another_header_has_no_scheme(key: dict[str, str], api: StandIn) -> None:
    async with opened(api.url, upstream_api_key_header="X-Api-Key", **key) as runtime:
        await runtime.upstream.get_json("/")
        await runtime.upstream.get_json("/", headers={"x-api-key": "the tool's own"})
    assert [request.headers["x-api-key"] for request in api.requests] == [HIDDEN, "the tool's own"]


@pytest.mark.parametrize(
    ("scheme", "sent"),
    [
        ("token", f"token {HIDDEN}"),
        ("none", HIDDEN),
        ("Basic", f"Basic {b64encode(HIDDEN.encode()).decode()}"),
    ],
)
async def test_the_key_is_sent_with_the_configured_scheme(
    key: dict[str, str], api: StandIn, scheme: str, sent: str
) -> None:
    async with opened(api.url, upstream_api_key_scheme=scheme, **key) as runtime:
        await runtime.upstream.get_json("/")
    assert api.requests[0].headers["authorization"] == sent


async def test_the_key_can_be_sent_as_a_query_parameter(
    key: dict[str, str], api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", "k&y=é")
    with stand_in() as other:
        async with opened(f"{api.url}/v1", upstream_api_key_query="api key", **key) as runtime:
            await runtime.upstream.get_json("/path?a=1,2")
            await runtime.upstream.get_json("/path")
            await runtime.upstream.get_json("/path", params={"api key": "the tool's own"})
            await runtime.upstream.get_json(f"{other.url}/elsewhere")
        assert other.requests[0].target == "/elsewhere"
    targets = [request.target for request in api.requests]
    assert targets[:2] == ["/v1/path?a=1,2&api%20key=k%26y%3D%C3%A9", "/v1/path?api%20key=k%26y%3D%C3%A9"]
    assert "k%26y" not in targets[2]
    assert not any("authorization" in request.headers for request in api.requests)


async def test_the_key_does_not_follow_a_redirect_to_another_host(key: dict[str, str], api: StandIn) -> None:
    with stand_in() as other:
        api.behave(respond(302, location=f"{other.url}/catch"))
        async with opened(api.url, **key) as runtime:
            with pytest.raises(UpstreamResponseError):
                await runtime.upstream.get_json("/")
        assert not other.requests


async def test_a_key_that_no_header_can_carry_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", f"{HIDDEN}\r\nX-Injected: 1")
    server = create_server(config(upstream_api_key_env="UPSTREAM_TEST_KEY"))
    with pytest.raises(ConfigError) as caught:
        async with server.running():
            pass
    assert str(caught.value).startswith("UPSTREAM_TEST_KEY: ")
    assert HIDDEN not in str(caught.value)


def test_no_secret_reaches_the_log(
    key: dict[str, str], api: StandIn, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    api.behave(respond(), respond(500, HIDDEN.encode()), respond(404), respond(body=HIDDEN.encode()), reset())
    with serve(add_fetch, upstream_base_url=api.url, **key) as server:
        for _ in range(5):
            server.call("fetch", {"path": f"/?key={HIDDEN}"})
    out, err = capfd.readouterr()
    assert "answered 500 Internal Server Error" in err
    assert HIDDEN not in out + err
