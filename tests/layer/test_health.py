"""Health: what an orchestrator, a load balancer and an operator read, and what makes each of them fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio
import anyio.to_thread
import httpx2
import pytest
from structlog.testing import capture_logs

from harness import HAS_METRICS, Running, Serve, message, wait_for
from raw_http import Raw, error_of
from weather_station.production import readiness_check
from weather_station.production.config import about
from weather_station.production.registry import Check, HealthPart
from weather_station.production.sdk import ProductionServer


async def passes() -> None: ...


async def fails() -> None:
    raise ConnectionError("no route to the database")


async def hangs() -> None:
    await anyio.sleep_forever()


def checked(**checks: Check) -> Callable[[ProductionServer], None]:
    """Return a function that registers readiness checks, as `tools/` does."""

    def register(server: ProductionServer) -> None:
        for name, check in checks.items():
            readiness_check(server, name, check)

    return register


def with_part(part: HealthPart) -> Callable[[ProductionServer], None]:
    async def contribute(caller_id: str) -> HealthPart:
        return part

    return lambda server: server.registry.health.parts.append(contribute)


def get(server: Running, path: str) -> tuple[int, dict[str, object]]:
    response = server.get(path)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


def test_a_healthy_server_reports_the_same_over_http_and_as_a_tool(serve: Serve) -> None:
    before = datetime.now(UTC)
    with serve(checked(database=passes)) as server:
        assert get(server, "/livez") == (200, {"status": "alive"})
        assert get(server, "/readyz") == (200, {"status": "ready"})
        status, report = get(server, "/health")
        result = server.call("health_check")["structuredContent"]
    after = datetime.now(UTC)
    assert status == 200
    for found in (report, result):
        assert found["status"] == "healthy"
        assert (found["server_name"], found["version"]) == (about().name, about().version)
        assert before <= datetime.fromisoformat(str(found["timestamp"])) <= after
        assert timedelta(0) <= timedelta(seconds=float(str(found["uptime_seconds"]))) <= after - before
        assert isinstance(found["auth_config"], dict)
        assert found["rate_limit"] is None or isinstance(found["rate_limit"], dict)
        assert found["problems"] == []
    assert report.keys() == result.keys()


def test_a_failing_check_makes_the_server_not_ready_and_is_logged_once(serve: Serve) -> None:
    with serve(checked(database=fails, queue=passes)) as server, capture_logs() as log:
        for _probe in range(3):
            assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["database"]})
        assert get(server, "/livez")[0] == 200
        status, report = get(server, "/health")
        assert (status, report["status"], report["problems"]) == (503, "unhealthy", ["not ready: database"])
        assert server.call("health_check")["structuredContent"]["status"] == "unhealthy"
    (entry,) = [entry for entry in log if "check" in entry]
    assert (entry["log_level"], entry["event"], entry["check"]) == ("warning", "readiness check fails", "database")
    assert "no route to the database" in entry["reason"]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
def test_a_check_that_raises_anything_fails_and_the_server_goes_on(serve: Serve, error: BaseException) -> None:
    async def exits() -> None:
        raise error

    with serve(checked(database=exits, queue=passes)) as server:
        for _probe in range(2):
            assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["database"]})
        assert server.call("health_check")["structuredContent"]["status"] == "unhealthy"


def test_a_check_that_passes_again_is_logged(serve: Serve) -> None:
    broken = True

    async def database() -> None:
        if broken:
            raise ConnectionError("no route to the database")

    with serve(checked(database=database)) as server, capture_logs() as log:
        assert get(server, "/readyz")[0] == 503
        broken = False
        wait_for(lambda: get(server, "/readyz")[0] == 200)
    assert "readiness check passes again" in [entry["event"] for entry in log]


def test_checks_run_at_the_same_time_and_a_hanging_one_fails_after_two_seconds(serve: Serve) -> None:
    waiting = 0
    both = asyncio.Event()

    async def meets() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        await both.wait()

    with serve(checked(database=hangs, queue=meets, cache=meets)) as server:
        started = time.monotonic()
        assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["database"]})
        assert time.monotonic() - started >= 2


def test_a_second_check_of_the_same_name_is_an_error(serve: Serve) -> None:
    with serve(checked(database=passes)) as server, pytest.raises(ValueError, match="'database' is registered already"):
        readiness_check(server.server, "database", passes)


def test_a_degraded_server_is_ready(serve: Serve) -> None:
    part = HealthPart(degraded=("circuit_open",))
    with serve(with_part(part)) as server:
        assert get(server, "/readyz")[0] == 200
        status, report = get(server, "/health")
    assert (status, report["status"]) == (200, "degraded")
    assert report["problems"] == ["circuit_open"]


def test_a_missing_key_of_the_upstream_is_reported_by_its_variable(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(upstream_api_key_env="WEATHER_KEY") as server:
        assert server.get("/health").json()["auth_config"]["WEATHER_KEY"] == "missing"
    monkeypatch.setenv("WEATHER_KEY", "hunter2")
    with serve(upstream_api_key_env="WEATHER_KEY") as server:
        response = server.get("/health")
    assert response.json()["auth_config"]["WEATHER_KEY"] == "configured"
    assert "hunter2" not in response.text


def test_a_draining_server_is_alive_and_not_ready(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        monkeypatch.setattr(server.server.drain, "run", _never_end)
        server.http.stop()
        wait_for(lambda: server.registry.draining)
        assert get(server, "/livez")[0] == 200
        assert get(server, "/readyz") == (503, {"status": "not ready", "failing": ["draining"]})
        assert get(server, "/health")[1]["status"] == "unhealthy"
        server.http.should_exit = True


async def _never_end(notice_seconds: float) -> float:
    await anyio.sleep_forever()
    return 0.0


async def test_many_probes_run_the_checks_once(serve: Serve, http: httpx2.AsyncClient) -> None:
    runs = 0

    async def database() -> None:
        nonlocal runs
        runs += 1
        await anyio.sleep(0.1)

    with serve(checked(database=database)) as server:
        paths = ("/readyz", "/health", *(["/metrics"] if HAS_METRICS else []))
        responses = await asyncio.gather(*(http.get(f"{server.base}{path}") for path in paths for _ in range(100)))
        assert {response.status_code for response in responses} == {200}
        assert 1 <= runs < 10
        before = runs
        wait_for(lambda: get(server, "/readyz")[0] == 200 and runs > before)  # the result does not last


async def test_a_cancelled_probe_does_not_affect_the_others(serve: Serve, http: httpx2.AsyncClient) -> None:
    started, release = threading.Event(), threading.Event()

    async def database() -> None:
        started.set()
        await anyio.to_thread.run_sync(release.wait)

    with serve(checked(database=database)) as server:
        with Raw(server.base) as first:
            first.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.to_thread(started.wait)
            second = asyncio.create_task(http.get(f"{server.base}/readyz"))
        release.set()
        assert (await second).status_code == 200


REPORTS = ("/health", *(["/metrics"] if HAS_METRICS else []))


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "evil.example", "kubernetes.default.svc"])
def test_probes_respond_for_any_host_and_without_credentials(serve: Serve, host: str) -> None:
    with serve(allowed_hosts="api.example.com", auth_tokens=None) as server:
        for path in ("/livez", "/readyz"):
            assert server.get(path, host=host, origin="http://evil.example").status_code == 200, path
            assert server.client.head(f"{server.base}{path}", headers={"host": host}).status_code == 200
        for path in REPORTS:
            response = server.get(path, host=host)
            assert (response.status_code, host in error_of(response)) == (421, True)
            for own in ("localhost", "127.0.0.1:1", "api.example.com"):
                assert server.get(path, host=own).status_code == 200
        server.server.registry.health.checks["database"] = passes
        with Raw(server.base) as connection:
            connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
            assert connection.response()[0] == 421


def test_reports_respond_for_any_host_where_others_reach_the_server(serve: Serve) -> None:
    with serve(host="192.0.2.1", auth_tokens="a:0123456789abcdef") as server:  # the harness binds loopback all the same
        for path in REPORTS:
            assert server.get(path, host="10.1.2.3:8000").status_code == 200


@pytest.mark.needs("observe.metrics")
def test_a_separate_port_of_the_metrics_rejects_a_foreign_host(serve: Serve) -> None:
    with serve(metrics_port=0) as server:
        url = server.registry.http.addresses["metrics"]
        assert server.client.get(url, headers={"host": "evil.example"}).status_code == 421
        assert server.client.get(url).status_code == 200
        assert server.client.get(f"{url}/", headers={"host": "evil.example"}).status_code == 404


def test_no_response_repeats_a_foreign_host_as_an_address(serve: Serve) -> None:
    with serve() as server:
        for path in ("/metrics/", "/livez/", "/health/", "/readyz/", "//evil.example/"):
            response = server.get(path, host="evil.example")
            assert (response.status_code, "location" in response.headers) == (404, False)


def test_responses_are_neither_stored_nor_taken_for_another_type(serve: Serve) -> None:
    with serve() as server:
        rejected = server.post(message("ping"), host="evil.example")
        for response in (server.get("/livez"), server.get("/readyz"), server.get("/health"), rejected):
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
        if HAS_METRICS:
            assert server.get("/metrics").headers["cache-control"] == "no-store"
        for response in (server.post(message("ping")), server.post(message("tools/list")), server.post({})):
            assert response.headers.get_list("cache-control") == ["no-store"]
            assert response.headers["x-content-type-options"] == "nosniff"
