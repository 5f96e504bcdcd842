"""Probes: `--check` tries to reach what the server depends on, and its exit status tells the result."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

import pytest

from harness import config
from stand_in import silent
from weather_station.__main__ import main
from weather_station.production.config import about, without_credentials
from weather_station.production.registry import Probe, Registry
from weather_station.production.serve import startup
from weather_station.production.testing import Api
from weather_station.server import create_server

Check = Callable[[str], tuple[int, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`check(url)` runs `--check` with that upstream and returns the exit status and the upstream's line."""

    def run(url: str) -> tuple[int, str]:
        monkeypatch.setenv("BASE_URL", url)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # the answers may name a collector
        status = main(["--check", "--port", "0"])
        found = re.search("^upstream +(.*)$", capsys.readouterr().out, re.MULTILINE)
        assert found is not None
        return status, found[1]

    return run


@pytest.mark.parametrize(
    ("status", "expected", "text"),
    [
        (200, 0, r"ok: {url} \(\d+ ms\)"),
        (307, 0, r"ok: {url} \(\d+ ms\)"),
        (401, 0, r"reached: {url} answered 401 \(\d+ ms\)"),
        (403, 0, r"reached: {url} answered 403 \(\d+ ms\)"),
        (404, 0, r"reached: {url} answered 404 \(\d+ ms\)"),
        (500, 1, "failed: {url}: answered 500"),
        (503, 1, "failed: {url}: answered 503"),
    ],
)
def test_an_upstream_that_responds_shows_its_status(check: Check, status: int, expected: int, text: str) -> None:
    with Api() as api:
        api.on("HEAD", "/", status=status)
        found, line = check(api.url)
    assert found == expected
    assert re.fullmatch(text.format(url=api.url), line)


@pytest.mark.parametrize("name", ["WEATHER_KEY", "API_KEY", "TOKEN_OF_THE_API"])
@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_a_missing_key_of_the_upstream_fails_the_check(
    check: Check, monkeypatch: pytest.MonkeyPatch, name: str, empty: str | None
) -> None:
    monkeypatch.setenv("UPSTREAM_API_KEY_ENV", name)
    if empty is not None:
        monkeypatch.setenv(name, empty)
    with Api() as api:
        assert check(api.url)[0] == 1
        monkeypatch.setenv(name, "key-of-the-api")
        assert check(api.url)[0] == 0


def test_an_unreachable_upstream_fails_the_check(check: Check) -> None:
    status, line = check("http://127.0.0.1:9")
    assert status == 1
    assert line.startswith("failed: http://127.0.0.1:9: ")


def test_an_upstream_that_hangs_fails_the_check(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PROBE_SECONDS", 0.2)
    with silent() as url:
        assert check(url) == (1, f"failed: {url}: no answer within 0.2 s")


async def test_a_probe_can_be_a_connection_or_a_function() -> None:
    async def fail() -> None:
        raise ConnectionError("[Errno 111] no route\nto the queue")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        registry = Registry(config(), about())
        registry.health.probes |= {
            "open": Probe(f"redis://127.0.0.1:{listener.getsockname()[1]}", "tcp"),
            "shut": Probe("redis://127.0.0.1:9", "tcp"),
            "queue": Probe("amqp://queue", fail),
        }
        results = await startup.run_probes(registry)
    assert results["open"].problem is None
    assert results["shut"].problem
    assert (results["queue"].target, results["queue"].problem) == ("amqp://queue", "no route to the queue")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (ExceptionGroup("both", [ExceptionGroup("inner", [ConnectionError("no route")]), LookupError()]), "no route"),
        (BaseExceptionGroup("both", [SystemExit(3), LookupError()]), "3"),
    ],
    ids=repr,
)
async def test_a_probe_that_raises_anything_fails(error: BaseException, problem: str) -> None:
    async def fail() -> None:
        raise error

    registry = Registry(config(), about())
    registry.health.probes["queue"] = Probe("amqp://queue", fail)
    assert (await startup.run_probes(registry))["queue"].problem == problem


@pytest.mark.needs("observe.telemetry")
async def test_the_collector_is_probed_where_traces_are_exported() -> None:
    """One after the other: the process has one tracer provider."""
    assert "traces" not in create_server(config()).registry.health.probes
    exporting = create_server(config(telemetry_endpoint="http://127.0.0.1:9"))
    results = await startup.run_probes(exporting.registry)
    assert results["traces"].target == "http://127.0.0.1:9"
    assert results["traces"].problem


def test_a_target_is_shown_without_its_credentials() -> None:
    assert without_credentials("redis://user:secret@cache:6379/0?password=secret") == "redis://cache:6379/0"
