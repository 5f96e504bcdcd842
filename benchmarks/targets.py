"""What is measured against what: servers, requests, and the combinations of both that make the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

TOKEN = "0123456789abcdef0123456789abcdef"  # of a server that lives for minutes on loopback
OFF = {
    f"ENABLE_{name}": "false"
    for name in ("LOGGING", "METRICS", "METRICS_TOOL", "RATE_LIMITING", "RETRIES", "CIRCUIT_BREAKER", "TELEMETRY")
}
COMMON = {"LOG_FORMAT": "json", "RATE_LIMIT_REQUESTS": "1000000000", "BASE_URL": "http://127.0.0.1:9"}
LOGS, METRICS, LIMITS, TRACES = (
    {f"ENABLE_{name}": "true"} for name in ("LOGGING", "METRICS", "RATE_LIMITING", "TELEMETRY")
)
OUTBOUND = {"ENABLE_RETRIES": "true", "ENABLE_CIRCUIT_BREAKER": "true"}
AUTH = {"AUTH_TOKENS": f"benchmark:{TOKEN}"}
REDIS = {"REDIS_URL": "redis://127.0.0.1:{redis}/0"}
OTLP = {"OTEL_EXPORTER_ENDPOINT": "http://127.0.0.1:{otlp}"}
STANDARD_OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{otlp}", "OTEL_SERVICE_NAME": "peer"}
INBOUND = LOGS | METRICS | LIMITS | OUTBOUND | AUTH


@dataclass(frozen=True, eq=False)
class Target:
    """A server and how to start it. `{redis}` and `{otlp}` in a setting stand for the ports of those."""

    name: str
    script: str
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: str = "project"
    token: bool = False

    def with_settings(self, **settings: str) -> Target:
        return replace(self, settings={**self.settings, **settings})


def _production(name: str, *settings: Mapping[str, str]) -> Target:
    merged: dict[str, str] = {}
    for part in (OFF, COMMON, *settings):
        merged |= part
    environment = "redis" if "REDIS_URL" in merged else "project"
    return Target(name, "production", merged, environment, token="AUTH_TOKENS" in merged)


BARE = Target("bare MCPServer", "bare")
NOTHING = Target("a server that does nothing", "nothing")
EVERYTHING_OFF = _production("generated, every feature off")
ALL_BUT_TELEMETRY = _production("generated, all but telemetry", INBOUND)
ALL = _production("generated, all, every call traced", INBOUND, TRACES, OTLP)
FASTMCP = Target("FastMCP 4, bare", "fastmcp_peer", environment="fastmcp")
FASTMCP_LAYER = Target(
    "FastMCP 4, its middlewares and token",
    "fastmcp_peer",
    {"FEATURES": "all-but-telemetry", "TOKEN": TOKEN, "FASTMCP_ENABLE_RICH_LOGGING": "false"},
    "fastmcp",
    token=True,
)
FASTMCP_ALL = replace(
    FASTMCP_LAYER,
    name="FastMCP 4, the same, every call traced",
    settings={**FASTMCP_LAYER.settings, **STANDARD_OTLP, "FEATURES": "all"},
)
SAMPLE = Target("sample code, empty window", "sample", STANDARD_OTLP)
SAMPLE_FULL = Target("sample code, a million timestamps", "sample", STANDARD_OTLP | {"WINDOW": "full"})
SAMPLE_DOCUMENTED = Target("sample code, served as documented", "sample", STANDARD_OTLP | {"TRANSPORT": "documented"})

JSON_TARGETS = (
    BARE,
    EVERYTHING_OFF,
    _production("generated, logging only", LOGS),
    _production("generated, metrics only", METRICS),
    _production("generated, memory limits only", LIMITS),
    _production("generated, Redis limits only", LIMITS, REDIS),
    _production("generated, retries and breaker only", OUTBOUND),
    _production("generated, token only", AUTH),
    _production("generated, telemetry only", TRACES, OTLP),
    ALL_BUT_TELEMETRY,
    _production("generated, all but telemetry, Redis limits", INBOUND, REDIS),
    ALL,
    _production("generated, all, Redis limits", INBOUND, REDIS, TRACES, OTLP),
    FASTMCP,
    FASTMCP_LAYER,
    FASTMCP_ALL,
    SAMPLE,
    SAMPLE_FULL,
    SAMPLE_DOCUMENTED,
)
"""For the protocol of 2026-07-28 with JSON responses."""

MAIN = (BARE, EVERYTHING_OFF, ALL_BUT_TELEMETRY, ALL, FASTMCP_LAYER, FASTMCP_ALL, SAMPLE)
"""For the other protocol and for SSE."""

VERSIONS = ("2026-07-28", "2025-11-25")
RESPONSES = ("json", "sse")


@dataclass(frozen=True)
class Cell:
    """One measured combination."""

    target: Target
    version: str
    response: str
    concurrency: int

    @property
    def key(self) -> str:
        return f"{self.target.name} | {self.version} | {self.response} | {self.concurrency}"


def request(version: str, *, token: bool, port: int, forwarded_for: str = "") -> str:
    """A tools/call of `add` as a client of this protocol version sends it."""
    params: dict[str, object] = {"name": "add", "arguments": {"a": 2, "b": 3}}
    headers = {
        "host": f"127.0.0.1:{port}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": version,
    }
    if version == "2026-07-28":
        headers |= {"mcp-method": "tools/call", "mcp-name": "add"}
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    if token:
        headers["authorization"] = f"Bearer {TOKEN}"
    if forwarded_for:
        headers["x-forwarded-for"] = forwarded_for
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, separators=(",", ":"))
    headers["content-length"] = str(len(body))
    lines = ["POST /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def command(target: Target, interpreters: Mapping[str, Path], here: Path) -> list[str | Path]:
    return [interpreters[target.environment], here / "servers" / f"{target.script}.py"]
