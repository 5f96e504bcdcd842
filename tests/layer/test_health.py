"""Health: what an orchestrator, a balancer and an operator read, and what fails which of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from weather_station.production import health, readiness_check
from weather_station.production.registry import (
    Check,
    HealthPart,
    ProductionServer,
)
from weather_station.production.config import about

from harness import Running, wait_for

Serve = Callable[..., AbstractContextManager[Running]]


async def passes() -> None: ...


async def fails() -> None:
    raise ConnectionError("no route to the database")


async def hangs() -> None:
    await anyio.sleep_forever()


def checked(**checks: Check) -> Callable[[ProductionServer], None]:
    """Registers readiness checks, as `tools/` does."""

    def register(server: ProductionServer) -> None:
        for name, check in checks.items():
            readiness_check(server, name, check)

    return register


def with_part(part: HealthPart) -> Callable[[ProductionServer], None]:
    async def contribute(client_id: str) -> HealthPart:
        return part

    return lambda server: server.registry.health.append(contribute)


def get(server: Running, path: str) -> tuple[int, dict[str, object]]:
    answer = server.client.get(f"{server.base}{path}")
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


def test_a_server_with_nothing_to_complain_of(serve: Serve) -> None:
    with serve(checked(database=passes)) as server:
        assert get(server, "/livez") == (200, {"status": "alive"})
        assert get(server, "/readyz") == (200, {"status": "ready"})
        status, report = get(server, "/health")
        result = server.call("health_check")["structuredContent"]
    assert status == 200
    for found in (report, result):
        assert found["status"] == "healthy"
        assert (found["server_name"], found["version"]) == (about().name, about().version)
        assert datetime.now(UTC) - datetime.fromisoformat(str(found["timestamp"])) < timedelta(seconds=10)
        assert 0 <= float(str(found["uptime_seconds"])) < 10
        assert isinstance(found["auth_config"], dict)
        assert found["rate_limit"] is None or isinstance(found["rate_limit"], dict)
        assert found["problems"] == []
    assert report.keys() == result.keys()


def test_a_failing_check_is_named_and_stops_the_traffic(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(checked(database=fails, queue=passes)) as server:
        for _probe in range(3):
            assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["database"]})
        assert get(server, "/livez")[0] == 200
        status, report = get(server, "/health")
        assert (status, report["status"], report["problems"]) == (503, "unhealthy", ["not ready: database"])
        assert server.call("health_check")["structuredContent"]["status"] == "unhealthy"
    assert capfd.readouterr().err.count("no route to the database") == 1, "a lasting failure is logged once"


def test_a_check_that_recovers_says_so(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    broken = True

    async def database() -> None:
        if broken:
            raise ConnectionError("no route to the database")

    with serve(checked(database=database)) as server:
        assert get(server, "/readyz")[0] == 503
        broken = False
        assert get(server, "/readyz")[0] == 200
    assert "readiness check passes again" in capfd.readouterr().err


def test_checks_run_at_once_and_one_that_hangs_fails(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.5)
    with serve(checked(database=hangs, queue=hangs, store=hangs, cache=passes)) as server:
        before = time.monotonic()
        assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["database", "queue", "store"]})
        assert time.monotonic() - before < 1.4, "one after the other they would take 1.5 s"


def test_a_check_has_two_seconds() -> None:
    assert health.CHECK_SECONDS == 2.0


def test_two_checks_of_one_name_are_refused(serve: Serve) -> None:
    with serve(checked(database=passes)) as server, pytest.raises(ValueError, match="'database' is registered already"):
        readiness_check(server.server, "database", passes)


def test_what_is_degraded_gets_its_traffic(serve: Serve) -> None:
    part = HealthPart(degraded=("circuit of api.example.com is open",))
    with serve(with_part(part)) as server:
        assert get(server, "/readyz")[0] == 200
        status, report = get(server, "/health")
    assert (status, report["status"]) == (200, "degraded")
    assert report["problems"] == ["circuit of api.example.com is open"]


def test_a_missing_key_of_the_upstream_is_reported_by_its_variable(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(upstream_api_key_env="WEATHER_KEY") as server:
        assert server.client.get(f"{server.base}/health").json()["auth_config"]["WEATHER_KEY"] == "missing"
        monkeypatch.setenv("WEATHER_KEY", "hunter2")
        answer = server.client.get(f"{server.base}/health")
    assert answer.json()["auth_config"]["WEATHER_KEY"] == "configured"
    assert "hunter2" not in answer.text


def test_a_draining_server_is_alive_and_not_ready(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        monkeypatch.setattr(server.registry.drain, "run", _wait_for_ever)  # holds the drain, so that it can be looked at
        server.http.stop()
        wait_for(lambda: server.registry.draining)
        assert get(server, "/livez")[0] == 200
        assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["draining"]})
        assert get(server, "/health")[1]["status"] == "unhealthy"
        server.http.should_exit = True


async def _wait_for_ever(notice_seconds: float) -> float:
    await anyio.sleep_forever()
    return 0.0


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "evil.example", "kubernetes.default.svc"])
def test_probes_answer_whatever_their_host_and_without_credentials(serve: Serve, host: str) -> None:
    with serve(allowed_hosts="api.example.com", auth_tokens=None) as server:
        for path in ("/livez", "/readyz", "/health"):
            answer = server.client.get(f"{server.base}{path}", headers={"host": host, "origin": "http://evil.example"})
            assert answer.status_code == 200, path
            assert server.client.head(f"{server.base}{path}", headers={"host": host}).status_code == 200
