"""Move the production layer into subpackages, introduce the public API, and remove the tests of its algorithms."""

import re
from pathlib import Path

PRODUCTION = "src/{{ package_name }}/production"

SUBPACKAGES = {
    "inbound": ("auth", "auth_jwt", "auth_token", "identity", "rate_limit", "rate_limit_redis"),
    "upstream": ("circuit_breaker", "retry"),
    "observe": (
        "health",
        "meter",
        "metrics_tool",
        "plain_logging",
        "redaction",
        "telemetry",
        "telemetry_grpc",
        "telemetry_http",
    ),
    "serve": ("env_file", "http", "startup", "stdio"),
}
"""Modules that keep their name, by subpackage."""

MOVED = {
    **{
        f"{PRODUCTION}/{module}.py": f"{PRODUCTION}/{package}/{module}.py"
        for package, modules in SUBPACKAGES.items()
        for module in modules
    },
    f"{PRODUCTION}/client_config.py": f"{PRODUCTION}/serve/host_config.py",
    f"{PRODUCTION}/metrics.py": f"{PRODUCTION}/observe/metrics.py",
    f"{PRODUCTION}/tools.py": f"{PRODUCTION}/serve/tool_loader.py",
    "docs/clients.md": "docs/hosts.md",
    "docs/registry.md": "docs/publishing.md",
    "ops/grafana/dashboards/client.json": "ops/grafana/dashboards/upstream.json",
}

SPLIT = {
    f"{PRODUCTION}/{module}.py": tuple(f"{PRODUCTION}/{part}.py" for part in parts)
    for module, parts in {
        "app": ("registry", "sdk"),
        "chain": ("inbound/pipeline", "request"),
        "client": ("upstream/client", "upstream/errors", "upstream/credentials"),
        "guard": ("inbound/guard", "inbound/http_limits"),
        "lifecycle": ("serve/lifecycle", "serve/drain", "serve/connections", "serve/listeners"),
        "logging": ("observe/logging", "observe/log_formats", "observe/stderr"),
    }.items()
}

GONE = {
    **{f"docs/{page}.md": "See docs/operation.md." for page in ("guard", "health", "lifecycle")},
    "docs/client.md": "See docs/tools.md and, for its metrics, docs/metrics.md.",
    f"{PRODUCTION}/connections.py": f"See {PRODUCTION}/serve/startup.py.",
    "tests/production/**": "These tests of the production layer's algorithms are now in the template's repository.",
}

SEEDED = (".gitattributes", "server.json", "tests/settings.env")

STRICTER = {
    "openapi_spec": "A URL with a secret is no longer recorded: revoke the secret, since git's history contains it."
}

API = "{{ package_name }}.production"

NAMES = {
    # The public API of 0.1.0; two of its names are also names of modules.
    **{
        f"{API}:{name}": f"{API}:{name}"
        for name in (
            "ProductionConfig",
            "circuit_breaker",
            "get_logger",
            "on_shutdown",
            "on_startup",
            "readiness_check",
            "register_modules",
            "retry",
            "tracer",
            "upstream",
        )
    },
    # Names that are part of the public API now.
    **{
        f"{API}.{module}:{name}": f"{API}:{name}"
        for module, names in {
            "app": ("on_shutdown", "on_startup", "readiness_check", "upstream"),
            "circuit_breaker": ("CircuitOpenError", "circuit_breaker"),
            "client": (
                "UpstreamConnectError",
                "UpstreamError",
                "UpstreamInterruptedError",
                "UpstreamResponseError",
                "UpstreamStatusError",
                "UpstreamTimeoutError",
            ),
            "retry": ("retry",),
            "tools": ("register_modules",),
        }.items()
        for name in names
    },
    f"{API}.app:production_of().meter": f"{API}:meter()",
    # Names of split modules that are not part of it.
    f"{API}.app:ProductionServer": f"{API}.sdk:ProductionServer",
    f"{API}.client:Upstream": f"{API}.upstream.client:Upstream",
}


SHIMS = Path(__file__).with_name("v0_2_0_shims")
"""Replacements for what tests of 0.1.0 import from tests/production, based on `production.testing`."""


def after(project: Path, package: str) -> None:
    """Add `tests.production.smoke` and `tests.production.harness` if the owner's tests import them.

    mypy resolves these imports only with `tests/__init__.py`, which a project without features lacks.
    """
    tests = [path.read_text("utf-8") for path in (project / "tests").glob("*.py")]
    for shim in sorted(SHIMS.glob("*.py")):
        target = project / "tests" / "production" / shim.name
        imported = re.compile(rf"^\s*(?:from|import)\s.*\bproduction\.{shim.stem}\b", re.MULTILINE)
        if not target.exists() and any(imported.search(text) for text in tests):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(shim.read_text("utf-8").replace("my_server", package), "utf-8")
            package_file = project / "tests" / "__init__.py"
            if not package_file.exists():
                package_file.write_text('"""The project\'s tests."""\n', "utf-8")
