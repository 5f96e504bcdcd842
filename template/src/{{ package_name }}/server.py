"""Assembles the server: configuration, then features, then tools, then the way in over HTTP."""

from __future__ import annotations

from starlette.types import ASGIApp

from .production import client, guard, health, http, lifecycle, plain_logging, tools
from .production.app import App, ProductionServer
from .production.config import ANSWERED, ANSWERS, ConfigError, ProductionConfig, about
from .production.features import FEATURES

ADD = "Add it with: uvx copier update --trust"
SWITCHES = tuple(name for name in ProductionConfig.model_fields if name.startswith("enable_"))


def create_server(config: ProductionConfig) -> ProductionServer:
    """A server with every feature that the project has and `config` leaves on, and all tools registered.

    Raises:
        ConfigError: the configuration asks for what this project lacks.
        StartError: a tool cannot be registered.
    """
    plain_logging.configure(config.log_level)
    app = App(config, about())
    app.features = tuple(_enabled(config))
    for name in app.features:
        FEATURES[name](app)
    client.install(app)
    guard.install(app)
    lifecycle.install(app)
    health.install(app)
    server = ProductionServer(app)
    for add_tools in app.tools:
        add_tools(server)
    with tools.explained():
        register(server)
    return server


def register(server: ProductionServer) -> None:
    """The owner's tools, imported here and not above, so that a mistake in them is reported as one."""
    from .tools import register as add_tools

    add_tools(server)


def create_app(server: ProductionServer) -> ASGIApp:
    """The ASGI application: the MCP endpoint at `/mcp`, probes and the features' routes beside it."""
    return http.build(server)


def _enabled(config: ProductionConfig) -> list[str]:
    wanted = {switch.removeprefix("enable_") for switch in SWITCHES if getattr(config, switch)}
    problems = [
        f"ENABLE_{name.upper()}: this project has no {name} feature. {ADD} --data enable_{name}=true"
        for name in sorted(wanted - FEATURES.keys())
    ]
    problems += [
        f"{field}={value}: this project was made with another answer. {ADD} --data {field}={value}"
        for field in sorted(ANSWERED)
        if (value := getattr(config, field)) not in ("none", "memory", ANSWERS["config"][field])
    ]
    if problems:
        raise ConfigError(problems)
    if config.auth != "none":
        wanted.add("auth")
    return [name for name in FEATURES if name in wanted]
