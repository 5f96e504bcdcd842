"""Audit over OTLP: the collector gets every record, and what it does not get is counted."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from collector import Collector, attributes_of, protocols, receiving
from harness import Running, Serve, config, wait_for
from stand_in import silent
from test_audit import VALIDATOR
from weather_station.production.config import ConfigError
from weather_station.production.inbound import audit, audit_otlp
from weather_station.production.observe import telemetry
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

SECRET = {"password": "s3cret-value"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let records go to the collector without long delays."""
    monkeypatch.setenv("AUDIT_SINK", "otlp")
    for name, seconds in (("DELAY_SECONDS", 0.02), ("RETRY_SECONDS", 0.05)):
        monkeypatch.setattr(audit_otlp, name, seconds)


def register(server: ProductionServer) -> None:
    @server.tool()
    async def echo(text: str, password: str = "") -> str:
        return text


def echo(server: Running, number: int, **arguments: str) -> dict[str, Any]:
    return server.call("echo", {"text": str(number), **arguments})


def received(collector: Collector) -> list[dict[str, Any]]:
    """Return the audit records that the collector has, each valid by the schema."""
    records = []
    for log_record in collector.records():
        if log_record.event_name == "audit":
            records.append(record := json.loads(log_record.body.string_value))
            VALIDATOR.validate(record)
            assert attributes_of(log_record) == {
                f"audit.{name}": record[name] for name in ("event", "decision", "outcome")
            }
            assert log_record.trace_id.hex() in (record.get("trace_id"), "")
    return records


def numbers(collector: Collector) -> list[str]:
    """Return the hashes of the arguments of the calls, in the order in which they came."""
    return [record["arguments_sha256"] for record in received(collector) if record.get("target") == "echo"]


def hashes(values: range) -> list[str]:
    return [audit.digest({"text": str(number)}) for number in values]


@protocols
def test_the_collector_gets_every_record_however_spans_are_sampled(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("AUDIT_ARGUMENTS", "redacted")
    with receiving(serve, protocol, monkeypatch, register) as (server, collector):
        for number in range(200):
            assert not echo(server, number, **SECRET).get("isError")
        assert server.client.post(server.url, headers={"origin": "https://evil.example"}).status_code == 403
    records = received(collector)  # the last ones came while the server stopped
    texts = [record["arguments"]["text"] for record in records if record.get("target") == "echo"]
    assert texts == [str(number) for number in range(200)]
    assert Counter(record["event"] for record in records) == {"request": 200, "http": 1}
    assert SECRET["password"] not in str(records)


@protocols
def test_a_collector_that_rejects_gets_the_records_later(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with receiving(serve, protocol, monkeypatch, register) as (server, collector):
        collector.status = 400
        for number in range(100):
            echo(server, number)
        collector.status = 200
        wait_for(lambda: len(numbers(collector)) >= 100)
        assert numbers(collector) == hashes(range(100))
        assert server.metrics().value("mcp_telemetry_export_failures_total", signal="logs")
        assert server.metrics().value("mcp_audit_records_dropped_total") in (0, None)


@pytest.mark.parametrize("policy", ["continue", "deny"])
def test_what_does_not_fit_into_the_queue_is_counted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(audit_otlp, "MAX_QUEUED_BYTES", 5000)
    monkeypatch.setenv("AUDIT_ON_FAILURE", policy)
    with receiving(serve, config().telemetry_protocol, monkeypatch, register) as (server, collector):
        collector.status = 400
        answers = [echo(server, number) for number in range(50)]
        failed = sum(bool(answer.get("isError")) for answer in answers)
        assert (failed > 0) is (policy == "deny")
        dropped = server.metrics().value("mcp_audit_records_dropped_total") or 0
        assert 0 < dropped < 50
        collector.status = 200

        def resumed() -> bool:
            return not echo(server, 50).get("isError") and "resumed" in str(received(collector))

        wait_for(resumed)
        records = received(collector)
    gap = next(record for record in records if record["event"] == "audit")
    assert gap["dropped"] >= dropped
    assert records.index(gap) + dropped == 50


def test_a_stop_counts_what_a_collector_that_hangs_does_not_get(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setattr(telemetry, "FLUSH_SECONDS", 0.2)
    with silent() as endpoint, serve(register, telemetry_endpoint=endpoint) as server:
        for number in range(20):
            assert not echo(server, number).get("isError")
        assert server.metrics().value("mcp_audit_records_dropped_total") in (0, None)
    [line] = [line for line in map(json.loads, capfd.readouterr().err.splitlines()) if "audit" in line["message"]]
    assert (line["message"], line["records"]) == ("audit records are lost: the collector did not accept them", 20)


def test_without_a_collector_of_logs_the_start_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="AUDIT_SINK=otlp: no logs are exported"):
        create_server(config())
    settings = config(telemetry_endpoint="http://127.0.0.1:9")
    create_server(settings)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    with pytest.raises(ConfigError, match="AUDIT_SINK=otlp: no logs are exported"):
        create_server(settings)
    monkeypatch.delenv("OTEL_LOGS_EXPORTER")
    with pytest.raises(ConfigError, match="AUDIT_SINK=otlp: no logs are exported"):
        create_server(config(telemetry_endpoint="http://127.0.0.1:9", enable_telemetry=False))
