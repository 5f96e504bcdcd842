"""The production layer in subpackages, a public API, and the tests of our own algorithms out of projects."""

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
"""The modules that have the same name in a subpackage."""

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
        "lifecycle": ("serve/lifecycle", "serve/drain", "serve/listen", "serve/listeners"),
        "logging": ("observe/logging", "observe/log_formats", "observe/stderr"),
    }.items()
}

GONE = {
    **{f"docs/{page}.md": "docs/operation.md has it now." for page in ("guard", "health", "lifecycle")},
    "docs/client.md": "docs/tools.md has it now, docs/metrics.md its metrics.",
    f"{PRODUCTION}/connections.py": f"{PRODUCTION}/serve/startup.py has it now.",
    "tests/production/**": "It proved the template's own algorithms, which the template's repository does from now on.",
}

SEEDED = (".gitattributes", "server.json", "tests/settings.env")

STRICTER = {"openapi_spec": "A URL with a secret is not recorded any more: revoke it, since git's history has it."}

API = "{{ package_name }}.production"

NAMES = {
    # What 0.1.0 exported, two of it beside a module of the same name.
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
    # What is exported now.
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
    # What kept its name and use in a module that was split.
    f"{API}.app:ProductionServer": f"{API}.sdk:ProductionServer",
    f"{API}.client:Upstream": f"{API}.upstream.client:Upstream",
}


SHIMS = Path(__file__).with_name("v0_2_0_shims")
"""What 0.1.0 let an owner's tests import from tests/production, on top of `production.testing`."""


def after(project: Path, package: str) -> None:
    """Keep `tests.production.smoke` and `tests.production.harness` for the owner's tests that import them.

    A project without features has no `tests/__init__.py`, without which mypy does not find such an import.
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
