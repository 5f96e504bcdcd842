"""Construction of the server from its configuration, and of its ASGI application."""

from __future__ import annotations

from starlette.types import ASGIApp

from .production import environment
from .production.config import ANSWERS, CHOSEN_AT_COPY, UPDATE, ConfigError, ProductionConfig, about, probable_typos
from .production.features import FEATURES
from .production.inbound import guard
from .production.observe import health, plain_logging
from .production.registry import Registry
from .production.sdk import ProductionServer
from .production.serve import http, tool_loader

SWITCHES = tuple(name for name in ProductionConfig.model_fields if name.startswith("enable_"))
LISTED = ("auth", "result_budget", "telemetry_logs", "telemetry_metrics", "upstream_auth")
"""The features without a switch that are listed among the features."""


def create_server(config: ProductionConfig) -> ProductionServer:
    """Return a server with the features that `config` switches on, and with all tools.

    Raises:
        ConfigError: the configuration is not valid, or needs a feature that this project does not contain.
        StartError: a tool cannot be registered.
    """
    plain_logging.configure(config.log_level)
    registry = Registry(config, about())
    enabled = _enabled_features(config)
    registry.features = tuple(name for name in enabled if f"enable_{name}" in SWITCHES or name in LISTED)
    registry.notices += environment.notices()
    problems = [*environment.problems(), *_absent_features(config)]
    features = [FEATURES[name] for name in enabled]
    for install in (*features, guard.install, health.install):
        try:
            install(registry)
        except ConfigError as error:
            problems += error.problems
        except Exception:
            if not problems:  # else it follows from one of them, such as a directory that does not exist
                raise
    if problems:
        raise ConfigError([*dict.fromkeys(problems)])  # two features may read the same variable
    with tool_loader.errors_explained():
        server = ProductionServer(registry)
    for register_tools in registry.tools.register:
        register_tools(server)
    with tool_loader.errors_explained():
        register(server)
    registry.notices += probable_typos()
    return server


def register(server: ProductionServer) -> None:
    """Import and register the owner's tools."""
    from .tools import register as register_tools  # not at the top: `create_server` explains errors of this import

    tool_loader.call_register(register_tools, server)


def create_app(server: ProductionServer) -> ASGIApp:
    """Return the ASGI application: the MCP endpoint at `/mcp`, and the routes of health and the other features."""
    return http.build(server)


def _enabled_features(config: ProductionConfig) -> list[str]:
    """Return the names of the features to install, in the order of `FEATURES`."""
    off = {switch.removeprefix("enable_") for switch in SWITCHES if not getattr(config, switch)}
    if config.auth == "none":
        off |= {name for name in FEATURES if name == "auth" or name.startswith("auth_")}
    if config.upstream_auth == "api_key":
        off.add("upstream_auth")
    return [name for name in FEATURES if name not in off]


def _absent_features(config: ProductionConfig) -> list[str]:
    """Return a line for each feature that the configuration needs and this project does not contain."""
    on = {switch.removeprefix("enable_") for switch in SWITCHES if getattr(config, switch)}
    problems = [
        f"ENABLE_{name.upper()}: this project has no {name} feature. Add it with: {UPDATE} enable_{name}=true"
        for name in sorted(on - FEATURES.keys())
    ]
    if not config.enable_authorization and (config.access_rules_file or config.default_access == "deny"):
        problems.append("ACCESS_RULES_FILE and DEFAULT_ACCESS=deny need ENABLE_AUTHORIZATION=true")
    if "response_mode" not in FEATURES and config.response_mode == "auto":
        problems.append(
            f"RESPONSE_MODE=auto: this project does not have this mode. Add it with: {UPDATE} response_mode=auto"
        )
    if "tool_selection" not in FEATURES and (config.tools_allow or config.tools_deny or config.read_only):
        problems.append(
            "TOOLS_ALLOW, TOOLS_DENY and READ_ONLY: this project cannot select tools. "
            f"Add it with: {UPDATE} profile=custom"
        )
    problems += [
        f"{field}={value}: this project was generated with {ANSWERS['config'][field]}. "
        f"Change it with: {UPDATE} {field}={value}"
        for field in sorted(CHOSEN_AT_COPY)
        if (value := getattr(config, field)) not in ("none", "memory", "api_key", ANSWERS["config"][field])
    ]
    return problems
