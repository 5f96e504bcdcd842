"""A server made of the samples in the documentation of server generators, copied into each tool, on the same SDK.

It has a logger that prints, a decorator for metrics, a limiter with a list of timestamps for each client, a decorator
for retries, and a span. With WINDOW=empty the limiter's list is always empty, which is its best case; with WINDOW=full
it contains a million timestamps, as after a busy window. TRANSPORT=documented serves as such samples do, by
`run("streamable-http")`; otherwise the transport settings are those of the generated server.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import _tools
from _serve import JSON, PORT, serve
from mcp.server.mcpserver import MCPServer
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import Counter, Gauge, Histogram

WINDOW_SECONDS, FILL = {"empty": (0.0, 0), "full": (86_400.0, 1_000_000)}[os.environ.get("WINDOW", "empty")]

CALLS = Counter("mcp_tool_calls_total", "Total tool calls", ["tool_name", "status"])
LATENCY = Histogram("mcp_tool_latency_seconds", "Tool latency", ["tool_name"], buckets=[0.01, 0.05, 0.1, 0.5, 1, 5, 10])
ERRORS = Counter("mcp_tool_errors_total", "Tool errors", ["tool_name", "error_type"])
ACTIVE = Gauge("mcp_active_requests", "Active requests")

Tool = Callable[..., Awaitable[Any]]


def log(level: str, message: str, **context: Any) -> None:
    entry = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "level": level, "message": message}
    print(json.dumps(entry | context), file=sys.stderr)


def measured(tool: Tool) -> Tool:
    @functools.wraps(tool)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        name = tool.__name__
        ACTIVE.inc()
        started = time.time()
        try:
            result = await tool(*args, **kwargs)
            CALLS.labels(tool_name=name, status="success").inc()
            return result
        except Exception as error:
            CALLS.labels(tool_name=name, status="error").inc()
            ERRORS.labels(tool_name=name, error_type=type(error).__name__).inc()
            raise
        finally:
            LATENCY.labels(tool_name=name).observe(time.time() - started)
            ACTIVE.dec()

    return wrapper


def retried(tool: Tool, retries: int = 3, delay: float = 1.0) -> Tool:
    @functools.wraps(tool)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        for attempt in range(retries + 1):
            try:
                return await tool(*args, **kwargs)
            except Exception as error:
                if attempt == retries:
                    raise
                log("warning", "retrying", attempt=attempt, error=str(error))
                await asyncio.sleep(delay * 2**attempt)
        return None

    return wrapper


class Limiter:
    def __init__(self, requests: int, window: float) -> None:
        self.requests, self.window = requests, window
        self.calls: dict[str, list[float]] = defaultdict(list)
        self.calls["default"] = [time.time()] * FILL

    def allows(self, client: str = "default") -> bool:
        now = time.time()
        self.calls[client] = [at for at in self.calls[client] if now - at < self.window]
        if len(self.calls[client]) >= self.requests:
            return False
        self.calls[client].append(now)
        return True


limiter = Limiter(10**9, WINDOW_SECONDS)
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("sample")
server: MCPServer = MCPServer("sample", log_level="WARNING")


@server.tool()
@measured
@retried
async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    if not limiter.allows():
        raise ValueError("Rate limit exceeded")
    with tracer.start_as_current_span("add") as span:
        span.set_attribute("tool.name", "add")
        log("info", "Tool called", tool="add", arguments={"a": a, "b": b})
        return await _tools.add(a, b)


if os.environ.get("TRANSPORT") == "documented":
    server.run("streamable-http", host="127.0.0.1", port=PORT)
else:
    serve(server.streamable_http_app(stateless_http=True, json_response=JSON))
