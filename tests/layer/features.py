"""Which modules of the production layer a project may lack. Knows no more of the project than its files."""

from __future__ import annotations

from importlib.util import find_spec

OPTIONAL = (
    "inbound.auth",
    "inbound.auth_jwt",
    "inbound.auth_token",
    "inbound.identity",
    "inbound.rate_limit",
    "inbound.rate_limit_redis",
    "observe.logging",
    "observe.metrics",
    "observe.metrics_tool",
    "observe.redaction",
    "observe.telemetry",
    "serve.host_config",
    "upstream.circuit_breaker",
    "upstream.retry",
)
"""Each is tested by `test_<name>.py`."""

ABSENT = [module.partition(".")[2] for module in OPTIONAL if find_spec(f"weather_station.production.{module}") is None]
