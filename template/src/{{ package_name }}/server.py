"""Assembles the server: configuration, features, the owner's tools, and the ASGI application."""

from __future__ import annotations

from starlette.types import ASGIApp

from .production.config import ANSWERS, CHOSEN_AT_COPY, ConfigError, ProductionConfig, about
from .production.features import FEATURES
from .production.inbound import guard
from .production.observe import health, plain_logging
from .production.registry import Registry
from .production.sdk import ProductionServer
from .production.serve import http, listen, tool_loader

UPDATE = "Add it with: uvx copier update --trust"
SWITCHES = tuple(name for name in ProductionConfig.model_fields if name.startswith("enable_"))


def create_server(config: ProductionConfig) -> ProductionServer:
    """Return a server with all features that are present and switched on in `config`, and with all tools.

    Raises:
        ConfigError: the configuration asks for what this project lacks.
        StartError: a tool cannot be registered.
    """
    plain_logging.configure(config.log_level)
    registry = Registry(config, about())
    enabled = _enabled(config)
    registry.features = tuple(name for name in enabled if name != "identity")  # it has no switch: others need it
    for name in enabled:
        FEATURES[name](registry)
    guard.install(registry)
    health.install(registry)
    listen.install(registry)
    server = ProductionServer(registry)
    for register_tools in registry.tools.register:
        register_tools(server)
    with tool_loader.errors_explained():
        register(server)
    return server


def register(server: ProductionServer) -> None:
    """Register the owner's tools. They are imported here, so that a mistake in them is reported as one."""
    from .tools import register as register_tools

    register_tools(server)


def create_app(server: ProductionServer) -> ASGIApp:
    """Return the ASGI application: the MCP endpoint at `/mcp`, the probes and the features' routes."""
    return http.build(server)


def _enabled(config: ProductionConfig) -> list[str]:
    """Return the features to install, in the order of `FEATURES`."""
    on = {switch.removeprefix("enable_") for switch in SWITCHES if getattr(config, switch)}
    off = {switch.removeprefix("enable_") for switch in SWITCHES} - on
    problems = [
        f"ENABLE_{name.upper()}: this project has no {name} feature. {UPDATE} --data enable_{name}=true"
        for name in sorted(on - FEATURES.keys())
    ]
    problems += [
        f"{field}={value}: this project was made with another answer. {UPDATE} --data {field}={value}"
        for field in sorted(CHOSEN_AT_COPY)
        if (value := getattr(config, field)) not in ("none", "memory", ANSWERS["config"][field])
    ]
    if problems:
        raise ConfigError(problems)
    if config.auth == "none":
        off.add("auth")
    return [name for name in FEATURES if name not in off]
