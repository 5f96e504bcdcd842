"""An OTLP receiver on a real socket, over both protocols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from harness import Running, Serve
from weather_station.production.config import ANSWERS
from weather_station.production.sdk import ProductionServer

TYPES: dict[str, Any] = {"metrics": ExportMetricsServiceRequest, "logs": ExportLogsServiceRequest}
SERVICES = {"metrics": "MetricsService", "logs": "LogsService", "traces": "TraceService"}

protocols = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


class Collector:
    """An OTLP receiver, and the requests that it got by signal."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.requests: dict[str, list[Any]] = {"metrics": [], "logs": [], "traces": []}
        self.status = 200
        """Status of its responses; the requests of others are not kept."""

    def add(self, signal: str, body: bytes) -> None:
        self.requests[signal].append(TYPES[signal].FromString(body) if signal in TYPES else body)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the last export by name."""
        last = self.requests["metrics"][-1].resource_metrics[0]
        return {metric.name: metric for scope in last.scope_metrics for metric in scope.metrics}

    def records(self) -> list[Any]:
        return [
            record
            for request in list(self.requests["logs"])
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@contextmanager
def over_http(collector: Collector) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.status == 200:
                collector.add(self.path.removeprefix("/v1/"), body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def over_grpc(collector: Collector) -> Iterator[str]:
    def handler(signal: str) -> Any:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            if collector.status != 200:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not now")
            collector.add(signal, body)
            return b""

        singular = signal.removesuffix("s") if signal == "traces" else signal
        service = f"opentelemetry.proto.collector.{singular}.v1.{SERVICES[signal]}"
        return grpc.method_handlers_generic_handler(service, {"Export": grpc.unary_unary_rpc_method_handler(export)})

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(tuple(map(handler, SERVICES)))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def attributes_of(point: Any) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in point.attributes
    }


@contextmanager
def receiving(
    serve: Serve,
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
    register: Callable[[ProductionServer], None] | None = None,
) -> Iterator[tuple[Running, Collector]]:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")  # the exporter of traces has the project's protocol
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "20")
    monkeypatch.setitem(ANSWERS["config"], "telemetry_protocol", protocol)
    collector = Collector()
    with (over_grpc if protocol == "grpc" else over_http)(collector) as collector.endpoint:
        settings = {"telemetry_endpoint": collector.endpoint, "telemetry_protocol": protocol}
        with serve(register, **settings) as server:
            yield server, collector
