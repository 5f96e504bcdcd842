"""Traces: the spans of a call that an OTLP receiver gets over the protocol of this project."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from weather_station.production.config import ProductionConfig
from weather_station.production.features import FEATURES
from weather_station.production.testing import Api, Process, wait_for

from .support import SECRET

SUPPORT = Path(__file__).with_name("support.py")
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def receiver() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the endpoint of an OTLP receiver, and a function that returns what it has received."""
    if ProductionConfig.load().telemetry_protocol == "grpc":
        grpc: Any = import_module("grpc")
        requests: list[bytes] = []

        def export(request: bytes, context: object) -> bytes:
            requests.append(request)
            return b""

        handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}", lambda: b"".join(requests)
        server.stop(None).wait()
    else:
        with Api() as api:
            api.on("POST", "/v1/traces")
            yield api.url, lambda: b"".join(request.body for request in api.requests)


def test_the_spans_of_a_call_reach_the_receiver(api: Api) -> None:
    api.on("GET", "/orders")
    with receiver() as (endpoint, received):
        settings = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": 100}
        with Process(tools=f"{SUPPORT}:tools", **settings) as server:
            arguments = {"path": f"{api.url}/orders?token={SECRET}"}
            meta = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            server.send("tools/call", {"name": "fetch", "arguments": arguments, "_meta": meta})
            server.call("crash")
            wait_for(lambda: b"tools/call crash" in received())
            spans, log = received(), server.log()
    assert b"tools/call fetch" in spans
    for ids in (bytes.fromhex(TRACE_ID), bytes.fromhex(PARENT_ID)):
        assert ids in spans
    assert api.requests[0].headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    for text in (b"mcp_server.status", b"enduser.id", b"error.type", b"RuntimeError", b"token=[redacted]"):
        assert text in spans
    assert SECRET.encode() not in spans
    assert "logging" not in FEATURES or f'"trace_id":"{TRACE_ID}"' in log
