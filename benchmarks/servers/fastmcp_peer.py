"""FastMCP 4 with the middlewares that it brings for what the generated server does, as far as it has them.

FEATURES: none, all-but-telemetry or all. Its logs are JSON on stderr through its own structured logging, without
`rich`, which would cost it some milliseconds a call. It traces by itself once OpenTelemetry has a provider.
"""

from __future__ import annotations

import logging
import os

import _tools
from _serve import JSON, serve
from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.server.middleware.error_handling import ErrorHandlingMiddleware, RetryMiddleware
from fastmcp.server.middleware.logging import StructuredLoggingMiddleware
from fastmcp.server.middleware.rate_limiting import RateLimitingMiddleware
from fastmcp.server.middleware.timing import TimingMiddleware

FEATURES = os.environ.get("FEATURES", "none")


def trace() -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


if FEATURES == "all":
    trace()
if FEATURES == "none":
    server: FastMCP = FastMCP("peer")
else:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = FastMCP(
        "peer",
        auth=StaticTokenVerifier({os.environ["TOKEN"]: {"client_id": "benchmark", "scopes": []}}),
        middleware=[
            StructuredLoggingMiddleware(),
            TimingMiddleware(),
            ErrorHandlingMiddleware(),
            RateLimitingMiddleware(max_requests_per_second=1e9, burst_capacity=10**9),
            RetryMiddleware(),
        ],
    )
_tools.register(lambda function, name: server.tool(function, name=name))
serve(server.http_app(path="/mcp", stateless_http=True, json_response=JSON))
