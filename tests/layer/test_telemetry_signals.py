"""Metrics and logs that an OTLP receiver on a real socket gets over both protocols."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from collector import Collector, attributes_of, over_grpc, over_http, protocols, receiving
from harness import DEADLINE_SECONDS, Running, Serve, config, has, log_lines, run_python, wait_for
from stand_in import silent
from weather_station.production import get_logger
from weather_station.production.config import ConfigError
from weather_station.production.observe import telemetry_metrics, telemetry_signals
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

BUCKETS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
"""Bounds of the convention's metrics (OpenTelemetry semantic conventions, docs/gen-ai/mcp.md, "Metrics")."""

CONVENTION = {"mcp.method.name", "gen_ai.tool.name", "gen_ai.prompt.name", "error.type"}
"""The attributes of `mcp.server.operation.duration` there that the server has."""

OWN = {"mcp_server.resource_template"}


def add_crash(server: ProductionServer) -> None:
    @server.tool()
    async def crash() -> str:
        fields = {"password": "hunter2", "number": 2**70, "text": "a\ud800", "parts": {"a": [1, "b"]}}
        get_logger("owner").warning("about to crash", **fields)
        get_logger("owner").warning("odd \ud800")
        raise LookupError("token=hunter2")


@protocols
def test_the_metrics_of_the_endpoint_are_exported(serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    with receiving(serve, protocol, monkeypatch, add_crash) as (server, collector):
        server.call("health_check")
        server.call("crash")
        count = len(collector.requests["metrics"])
        wait_for(lambda: len(collector.requests["metrics"]) > count + 1)
        scraped = server.metrics()
        found = collector.metrics()
        resource = collector.requests["metrics"][-1].resource_metrics[0].resource
    assert attributes_of(resource)["service.name"] == server.registry.about.name
    duration = found["mcp.server.operation.duration"]
    assert duration.unit == "s"
    assert {name for point in duration.histogram.data_points for name in attributes_of(point)} <= CONVENTION | OWN
    points = {attributes_of(point).get("gen_ai.tool.name"): point for point in duration.histogram.data_points}
    crash = points["crash"]
    expected = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "crash", "error.type": "LookupError"}
    assert attributes_of(crash) == expected
    assert (crash.count, list(crash.explicit_bounds), sum(crash.bucket_counts)) == (1, BUCKETS, 1)
    calls = {tuple(attributes_of(point).values()): point.as_double for point in found["mcp_tool_calls"].sum.data_points}
    assert calls["crash", "error"] == 1
    assert found["mcp_tool_calls"].sum.is_monotonic
    assert found["mcp_ready"].gauge.data_points[0].as_double == 1
    families = {name.rpartition("_")[0] for (name, _) in scraped.samples} | {name for (name, _) in scraped.samples}
    assert {name for name in found if not name.startswith("mcp.")} <= families


@protocols
def test_the_last_values_are_exported_when_the_server_stops(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "86400000")
    with receiving(serve, protocol, monkeypatch) as (server, collector):
        server.call("health_check")
        assert collector.requests["metrics"] == []
    assert "mcp.server.operation.duration" in collector.metrics()


@protocols
@pytest.mark.needs("observe.telemetry_logs")
def test_the_lines_of_the_log_are_exported(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with receiving(serve, protocol, monkeypatch, add_crash) as (server, collector):
        server.call("crash")
        wait_for(lambda: any(record.body.string_value == "tool call" for record in collector.records()))
    records = {record.body.string_value: record for record in collector.records()}
    lines = {line["message"]: line for line in log_lines(capfd.readouterr().err)}
    assert "odd \ufffd" in records
    for text in ("about to crash", "tool call", "tool raised an unexpected exception"):
        record, line = records[text], lines[text]
        attributes = attributes_of(record)
        assert record.severity_text == line["severity"]
        assert record.severity_number in (13, 17)
        assert attributes["request_id"] == line["request_id"]
        assert attributes.keys() == line.keys() - {"timestamp", "level", "severity", "message", "trace_id", "span_id"}
    assert attributes_of(records["about to crash"])["parts"].values
    assert b"hunter2" not in b"".join(request.SerializeToString() for request in collector.requests["logs"])


def test_a_hanging_collector_delays_neither_calls_nor_the_stop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setattr(telemetry_signals, "FLUSH_SECONDS", 0.2)
    with silent() as endpoint, serve(telemetry_endpoint=endpoint) as server:
        for _ in range(20):
            assert not server.call("health_check").get("isError")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exporter_that_raises_is_asked_again_until_the_stop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[threading.Thread] = []
    stopping, closed = threading.Event(), threading.Event()

    def export(metrics: Any) -> None:
        exports.append(threading.current_thread())
        if stopping.is_set() and exports[-1].name == "metrics export":
            closed.wait(DEADLINE_SECONDS)
        if exports[-1].name == "metrics export":
            raise ValueError("closed channel")

    def make(*arguments: Any) -> Any:
        return SimpleNamespace(export=export, shutdown=closed.set)

    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setattr(telemetry_signals, "exporter_of", make)
    with serve(telemetry_endpoint="http://127.0.0.1:9"):
        wait_for(lambda: len(exports) > 2)
        stopping.set()
        count = len(exports)
        wait_for(lambda: len(exports) > count)
    exports[0].join(DEADLINE_SECONDS)
    assert not exports[0].is_alive()


@protocols
def test_failed_exports_are_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    signals = ["metrics", "logs"] if has("observe.telemetry_logs") else ["metrics"]

    def failures(server: Running) -> list[float | None]:
        return [server.metrics().value("mcp_telemetry_export_failures_total", signal=signal) for signal in signals]

    with receiving(serve, protocol, monkeypatch) as (server, collector):
        server.call("health_check")
        wait_for(lambda: all(collector.requests[signal] for signal in signals))
        assert failures(server) == [0] * len(signals)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serve(telemetry_endpoint="http://127.0.0.1:9", telemetry_protocol=protocol) as server:
        server.call("health_check")
        wait_for(lambda: all(failures(server)))


def test_an_export_that_fails_before_the_exporter_is_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("a metric that cannot be read")

    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    monkeypatch.setattr(telemetry_metrics, "converted", fail)
    with receiving(serve, "grpc", monkeypatch) as (server, collector):
        wait_for(lambda: server.metrics().value("mcp_telemetry_export_failures_total", signal="metrics"))
        assert collector.requests["metrics"] == []


@pytest.mark.release
def test_an_outage_is_one_line_a_minute_although_no_traces_are_exported() -> None:
    done = run_python(
        """
with harness.running(harness.config(telemetry_endpoint="http://127.0.0.1:9")) as server:
    def failures():
        return server.metrics().value("mcp_telemetry_export_failures_total", signal="metrics")
    harness.wait_for(lambda: failures() > 3)
""",
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRIC_EXPORT_INTERVAL=20,
        OTEL_BLRP_SCHEDULE_DELAY=20,
        OTEL_EXPORTER_OTLP_TIMEOUT=1,
    )
    assert done.returncode == 0, done.stderr
    about_export = [line for line in done.stderr.splitlines() if "opentelemetry" in line]
    assert len(about_export) == 1, about_export


def test_signals_can_be_switched_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    with receiving(serve, "grpc", monkeypatch) as (server, collector):
        server.call("health_check")
    assert collector.requests == {"metrics": [], "logs": [], "traces": []}


@pytest.mark.parametrize("interval", ["0", "-1", "x", "1.5", "86400001", "9" * 5000])
def test_an_interval_that_is_none_stops_the_start(serve: Serve, monkeypatch: pytest.MonkeyPatch, interval: str) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", interval)
    with pytest.raises(ConfigError, match="OTEL_METRIC_EXPORT_INTERVAL"), receiving(serve, "grpc", monkeypatch):
        pass


def test_a_server_that_starts_again_exports_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")

    async def start_twice(endpoint: str) -> None:
        server = create_server(config(telemetry_endpoint=endpoint))
        for _ in range(2):
            async with server.running():
                get_logger("owner").info("started")

    collector = Collector()
    listen = over_grpc if config().telemetry_protocol == "grpc" else over_http
    with listen(collector) as endpoint:
        asyncio.run(start_twice(endpoint))
    assert len(collector.requests["metrics"]) == 2
    if has("observe.telemetry_logs"):
        assert [record.body.string_value for record in collector.records()].count("started") == 2


def test_an_endpoint_without_standard_variables_is_enough() -> None:
    code = "server = harness.create_server(harness.config(telemetry_endpoint='http://127.0.0.1:9'))\n"
    done = run_python(f"{code}assert 'telemetry_metrics' in server.registry.features")
    assert done.returncode == 0, done.stderr
