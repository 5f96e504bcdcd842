"""Dependencies beside the upstream API: opened with the server, used with its policies, and seen by its operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp.server.mcpserver import Context

from harness import HAS_METRICS, Serve, config, text_of, wait_for
from weather_station import server as server_module
from weather_station.__main__ import main
from weather_station.production import Dependency, UpstreamError, UpstreamTimeoutError, dependency
from weather_station.production.config import StartError
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

QUICK = {"retry_delay_seconds": 0.001, "retry_max_delay_seconds": 0.001}


class LostError(Exception):
    """The store broke the connection."""


@dataclass
class Store:
    """A store that can be down. Its failures quote a password, as those of database drivers do."""

    down: bool = False
    hangs: bool = False
    failures: int = 0
    """How many of the next operations fail."""
    opened: int = 0
    closed: int = 0
    operations: list[str] = field(default_factory=list)

    async def open(self) -> Store:
        if self.down:
            raise ConnectionRefusedError("postgresql://shop:a-password@db")
        self.opened += 1
        return self

    async def close(self) -> None:
        self.closed += 1

    async def read(self, key: str) -> str:
        self.operations.append(key)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.down or self.failures:
            self.failures -= not self.down
            raise LostError("postgresql://shop:a-password@db")
        return f"value of {key}"


def database(where: Any, store: Store, **options: Any) -> Dependency[Store]:
    return dependency(
        where,
        "database",
        open=store.open,
        close=Store.close,
        ping=lambda value: value.read("ping"),
        failures=(LostError, OSError),
        **options,
    )


def adding(store: Store, **options: Any) -> Callable[[ProductionServer], None]:
    """Register a tool that reads, and one that writes."""

    async def read(key: str, ctx: Context[Any, Any]) -> str:
        return await database(ctx, store).run(lambda value: value.read(key), repeatable=True)

    async def write(key: str, ctx: Context[Any, Any]) -> str:
        return await database(ctx, store).run(lambda value: value.read(key))

    def register(server: ProductionServer) -> None:
        database(server, store, **options)
        server.add_tool(read)
        server.add_tool(write)

    return register


def test_it_is_opened_and_closed_with_the_server(serve: Serve) -> None:
    store = Store()
    with serve(adding(store)) as server:
        assert (store.opened, store.closed) == (1, 0)
        assert text_of(server.call("read", {"key": "a"})) == "value of a"
        assert server.get("/readyz").status_code == 200
        assert database(server.server, store).value is store
        assert store.opened == 1
        if HAS_METRICS:
            metrics = server.metrics()
            labels = {"host": "database", "method": "run", "outcome": "success"}
            assert metrics.value("mcp_upstream_requests_total", **labels) == 2  # the start's ping, and the call
            assert metrics.value("mcp_upstream_latency_seconds_count", host="database") == 2
    assert store.closed == 1


@pytest.mark.needs("upstream.retry")
def test_only_a_repeatable_operation_is_retried(serve: Serve) -> None:
    store = Store()
    with serve(adding(store), max_retries=2, enable_circuit_breaker=False, **QUICK) as server:
        store.failures = 2
        assert text_of(server.call("read", {"key": "a"})) == "value of a"
        assert store.operations.count("a") == 3
        if HAS_METRICS:
            assert server.metrics().value("mcp_upstream_retries_total", host="database") == 2
        store.failures = 1
        lost = server.call("write", {"key": "b"})
        assert lost["isError"]
        assert text_of(lost) == "database failed. It may have been carried out: check before trying again."
        assert store.operations.count("b") == 1
        store.failures = 3
        text = text_of(server.call("read", {"key": "c"}))
        assert text == "database failed (3 attempts). Trying again later may help."


@pytest.mark.needs("upstream.circuit_breaker")
def test_the_circuit_opens_and_closes(serve: Serve) -> None:
    store = Store()
    settings = {
        "enable_retries": False,
        "circuit_failure_threshold": 2,
        "circuit_recovery_timeout": 0.2,
        "circuit_half_open_requests": 1,
    }
    with serve(adding(store), **settings) as server:
        store.down = True
        for _ in range(2):
            assert "database failed" in text_of(server.call("read", {"key": "a"}))
        text = text_of(server.call("read", {"key": "a"}))
        assert text.startswith("Service temporarily unavailable: database has failed repeatedly"), text
        assert store.operations.count("a") == 2
        store.down = False
        wait_for(lambda: not server.call("read", {"key": "a"}).get("isError"))


async def test_an_exception_that_is_no_failure_passes_unchanged() -> None:
    store = Store()
    server = create_server(config(circuit_failure_threshold=1))
    made = database(server, store)

    async def duplicate(value: Store) -> None:
        raise ValueError("duplicate key")

    async with server.running():
        for _ in range(3):
            with pytest.raises(ValueError, match="duplicate key"):
                await made.run(duplicate, repeatable=True)
        assert await made.run(lambda value: value.read("a")) == "value of a"


async def test_an_attempt_has_a_deadline() -> None:
    store = Store()
    server = create_server(config(attempt_timeout_seconds=0.05, request_timeout_seconds=0.05))
    made = database(server, store)
    async with server.running():
        store.hangs = True
        with pytest.raises(UpstreamTimeoutError, match=r"database did not answer within 0\.05 s"):
            await made.run(lambda value: value.read("a"))


async def test_failures_of_a_group_and_of_another_dependency() -> None:
    store = Store()
    server = create_server(config(enable_retries=False, enable_circuit_breaker=False))
    made = database(server, store)

    async def group(value: Store) -> None:
        raise ExceptionGroup("two", [ValueError(), LostError()])

    async def elsewhere(value: Store) -> None:
        raise UpstreamError("api.example.com failed", host="api.example.com")

    async with server.running():
        with pytest.raises(UpstreamError, match="database failed"):
            await made.run(group)
        with pytest.raises(UpstreamError, match=r"api\.example\.com failed"):
            await made.run(elsewhere)


async def test_what_is_required_stops_the_start() -> None:
    store = Store(down=True)
    server = create_server(config(enable_retries=False))
    made = database(server, store)
    with pytest.raises(StartError, match="database does not work: ConnectionRefusedError"):
        async with server.running():
            raise AssertionError
    with pytest.raises(UpstreamError, match="database cannot be reached"):
        _ = made.value


def test_what_is_not_required_is_opened_later(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store(down=True)
    settings = {"enable_retries": False, "circuit_failure_threshold": 100}
    with serve(adding(store, required=False), **settings) as server:
        assert server.get("/readyz").status_code == 200
        health = server.get("/health").json()
        assert (health["status"], health["problems"]) == ("degraded", ["degraded: database"])
        text = text_of(server.call("write", {"key": "a"}))
        assert text == "database cannot be reached. Trying again later may help."
        store.down = False
        assert text_of(server.call("read", {"key": "a"})) == "value of a"
        assert store.opened == 1
        wait_for(lambda: server.get("/health").json()["status"] == "healthy")
    assert store.closed == 1
    assert "a-password" not in capfd.readouterr().err


def test_readiness_follows_what_is_required(serve: Serve) -> None:
    store = Store()
    with serve(adding(store)) as server:
        store.down = True
        wait_for(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/health").json()["problems"][0] == "not ready: database"
        store.down = False
        wait_for(lambda: server.get("/readyz").status_code == 200)


@pytest.mark.parametrize(("down", "status", "shown"), [(False, 1, "ok: database"), (True, 1, "failed: database")])
def test_check_pings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], down: bool, status: int, shown: str
) -> None:
    monkeypatch.setitem(vars(server_module), "register", adding(Store(down=down), required=False))
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ENABLE_RETRIES", "false")
    assert main(["--check", "--port", "0"]) == status  # the upstream is missing
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    (row,) = (text for name, text in rows if name == "database")
    assert row.startswith(shown)
    assert ("degraded: database" in [text for name, text in rows if name == "problem"]) is down


async def test_a_declaration_that_is_too_late_or_taken() -> None:
    store = Store()
    server = create_server(config())
    made = database(server, store)

    async def another() -> Store:
        return store

    assert database(server, store) is made
    with pytest.raises(ValueError, match="declared already"):
        dependency(server, "database", open=another, close=Store.close, ping=Store.close)
    async with server.running():
        with pytest.raises(RuntimeError, match="call dependency"):
            dependency(server, "queue", open=store.open, close=Store.close, ping=Store.close)


async def test_calls_that_find_it_closed_open_it_once() -> None:
    store = Store(down=True)
    server = create_server(config(enable_retries=False, circuit_failure_threshold=1000))
    made = database(server, store, required=False)
    async with server.running():
        store.down = False
        await asyncio.gather(*(made.run(lambda value: value.read("a")) for _ in range(100)))
        assert store.opened == 1
