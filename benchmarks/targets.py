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
PERMISSIONS = {
    "AUTH_TOKENS": "",
    "AUTH_TOKENS_FILE": "{permissions}/tokens.txt",
    "ACCESS_RULES_FILE": "{permissions}/rules.toml",
    "RATE_LIMIT_TIERS": "internal=1000000000/60",
}


EARLIER = "earlier"
"""The environment of the project that another commit's template makes."""

VERSIONS = ("2026-07-28", "2025-11-25")
RESPONSES = ("json", "sse")


@dataclass(frozen=True, eq=False)
class Target:
    """A server and how to start it. Names in braces in a setting stand for the places that a run gives them."""

    name: str
    script: str
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: str = "project"
    token: bool = False
    versions: tuple[str, ...] = VERSIONS
    """The protocol versions that it speaks."""

    def of_version(self, label: str) -> Target:
        """Return the same server as an earlier commit's template generates it."""
        return replace(self, name=f"{self.name}, at {label}", environment=EARLIER)

    def with_settings(self, **settings: str) -> Target:
        return replace(self, settings={**self.settings, **settings})


def _production(name: str, *settings: Mapping[str, str]) -> Target:
    merged: dict[str, str] = {}
    for part in (OFF, COMMON, *settings):
        merged |= part
    environment = "redis" if "REDIS_URL" in merged else "permissions" if "ACCESS_RULES_FILE" in merged else "project"
    return Target(name, "production", merged, environment, token="AUTH_TOKENS" in merged)


BARE = Target("bare MCPServer", "bare")
NOTHING = Target("a server that does nothing", "nothing")
EVERYTHING_OFF = _production("generated, every feature off")
ALL_BUT_TELEMETRY = _production("generated, all but telemetry", INBOUND)
WITH_PERMISSIONS = _production("generated, the same with authorization, tiers and audit", INBOUND, PERMISSIONS)
ALL = _production("generated, all, every call traced", INBOUND, TRACES, OTLP)
EVERY_FEATURE = replace(
    ALL,
    name="generated, with every feature that there is",
    settings=ALL.settings | PERMISSIONS | REDIS | {"ENABLE_METRICS_TOOL": "true"},
    environment="everything",
)
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
TYPESCRIPT = Target("TypeScript SDK 2, bare", "typescript_peer", environment="node")
TS_CORE = Target("mcp-ts-core", "ts_core_peer", environment="node", versions=("2025-11-25",))
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
    WITH_PERMISSIONS,
    _production("generated, all but telemetry, Redis limits", INBOUND, REDIS),
    ALL,
    _production("generated, all, Redis limits", INBOUND, REDIS, TRACES, OTLP),
    FASTMCP,
    FASTMCP_LAYER,
    FASTMCP_ALL,
    TYPESCRIPT,
    SAMPLE,
    SAMPLE_FULL,
    SAMPLE_DOCUMENTED,
)
"""For the protocol of 2026-07-28 with JSON responses."""

LEGACY = (
    BARE,
    EVERYTHING_OFF,
    ALL_BUT_TELEMETRY,
    WITH_PERMISSIONS,
    ALL,
    FASTMCP,
    FASTMCP_LAYER,
    FASTMCP_ALL,
    TYPESCRIPT,
    TS_CORE,
    SAMPLE,
)
"""For the protocol of 2025-11-25 with JSON responses."""

COMPARED = (EVERYTHING_OFF, ALL_BUT_TELEMETRY, ALL)
"""Compared with the servers of an earlier commit."""


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


def request(
    version: str,
    *,
    token: bool,
    port: int,
    forwarded_for: str = "",
    tool: str = "add",
    arguments: Mapping[str, object] | None = None,
    session: str = "",
) -> str:
    """A tools/call, by default of `add`, as a client of this protocol version sends it."""
    params: dict[str, object] = {"name": tool, "arguments": arguments or {"a": 2, "b": 3}}
    headers = {"mcp-protocol-version": version}
    if version == "2026-07-28":
        headers |= {"mcp-method": "tools/call", "mcp-name": tool}
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    if token:
        headers["authorization"] = f"Bearer {TOKEN}"
    if forwarded_for:
        headers["x-forwarded-for"] = forwarded_for
    if session:
        headers["mcp-session-id"] = session
    return _post(port, headers, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})


def initialize(version: str, *, token: bool, port: int) -> str:
    """The request that opens a session."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}}
    headers = {"authorization": f"Bearer {TOKEN}"} if token else {}
    return _post(port, headers, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})


def _post(port: int, headers: Mapping[str, str], message: Mapping[str, object]) -> str:
    body = json.dumps(message, separators=(",", ":"))
    every = {
        "host": f"127.0.0.1:{port}",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        **headers,
        "content-length": str(len(body)),
    }
    lines = ["POST /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in every.items())]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def command(target: Target, interpreters: Mapping[str, Path], here: Path) -> list[str | Path]:
    program = interpreters[target.environment]
    if target.environment == "node":
        return [program, program.parents[3] / f"{target.script}.mjs"]
    return [program, here / "servers" / f"{target.script}.py"]
