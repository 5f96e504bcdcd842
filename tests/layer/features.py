"""Which modules of the production layer a project may lack. Imports nothing of a project."""

OPTIONAL = (
    "inbound.auth",
    "inbound.auth_introspection",
    "inbound.auth_jwt",
    "inbound.auth_token",
    "inbound.identity",
    "inbound.rate_limit",
    "inbound.rate_limit_redis",
    "observe.access_log",
    "observe.logging",
    "observe.metrics",
    "observe.metrics_tool",
    "observe.redaction",
    "observe.telemetry",
    "openapi",
    "serve.env_file",
    "serve.host_config",
    "serve.listeners",
    "serve.options",
    "upstream.circuit_breaker",
    "upstream.credentials_client",
    "upstream.credentials_exchange",
    "upstream.credentials_keys",
    "upstream.credentials_obo",
    "upstream.retry",
)
"""Each is tested by `test_<name>.py`."""
