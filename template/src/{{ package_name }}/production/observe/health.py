"""Liveness, readiness and health: the routes `/livez`, `/readyz` and `/health`, and the `health_check` tool.

An outage of the upstream shows as `degraded` and never fails readiness: every replica would lose its traffic at once.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import Context as ContextVariables
from datetime import UTC, datetime
from typing import Any, Literal

import structlog
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..registry import Check, Registry
from ..request import is_own_failure

CHECK_SECONDS = 2.0
"""Time limit of one readiness check."""

SHARED_SECONDS = 1.0
"""How long the result of the readiness checks is used again: anyone may request it, at any rate."""

NO_STORE = {"cache-control": "no-store"}

log = structlog.stdlib.get_logger(__name__)


class RateLimitStatus(BaseModel):
    remaining: int
    window_seconds: int


class HealthReport(BaseModel):
    """State of the server. `degraded`: it works with restrictions. `unhealthy`: it should get no traffic."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime
    server_name: str
    version: str
    uptime_seconds: float
    auth_config: dict[str, Literal["configured", "missing"]] = {}
    rate_limit: RateLimitStatus | None = None
    problems: list[str] = []


def install(registry: Registry) -> None:
    async def livez(request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers=NO_STORE)

    async def readyz(request: Request) -> Response:
        failing = await failing_checks(registry)
        if failing:
            return JSONResponse({"status": "not ready", "failing": failing}, status_code=503, headers=NO_STORE)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def health(request: Request) -> Response:
        health_report = await report(registry, registry.identify(request).id)
        status = 503 if health_report.status == "unhealthy" else 200
        return JSONResponse(health_report.model_dump(mode="json"), status_code=status, headers=NO_STORE)

    async def health_check(ctx: Context[Any, Any]) -> HealthReport:
        """Status, version, uptime, missing credentials and remaining rate limit of this server."""
        return await report(registry, registry.identify(ctx.request_context.request).id)

    registry.http.routes += [Route("/livez", livez), Route("/readyz", readyz), Route("/health", health)]

    def register(server: MCPServer[Any]) -> None:
        server.tool(
            title="Health check",
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
        )(health_check)

    if registry.config.health_tool:
        registry.tools.register.append(register)


async def failing_checks(registry: Registry) -> list[str]:
    """Return the names of the failing checks that make the server not ready; during a drain only `draining`.

    The checks run once at a time, and their result is used for `SHARED_SECONDS`.
    """
    if registry.draining:
        return ["draining"]
    health = registry.health
    loop = asyncio.get_running_loop()
    latest = health.latest
    if latest is None or latest.get_loop() is not loop or (latest.done() and loop.time() >= health.latest_until):
        # In an empty context: the run belongs to no request's trace.
        latest = health.latest = loop.create_task(_run_checks(registry), context=ContextVariables())
    return [name for name in await asyncio.shield(latest) if name not in health.degrading]


async def _run_checks(registry: Registry) -> list[str]:
    names = list(registry.health.checks)
    problems = await asyncio.gather(*(_problem(registry.health.checks[name]) for name in names))
    failing = {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}
    for name in names:  # readiness is requested every few seconds, so only changes are logged
        if name in failing and name not in registry.health.failing:
            log.warning("readiness check fails", check=name, reason=failing[name])
        if name in registry.health.failing and name not in failing:
            log.info("readiness check passes again", check=name)
    registry.health.failing = frozenset(failing)
    registry.health.latest_until = asyncio.get_running_loop().time() + SHARED_SECONDS
    return list(failing)


async def _problem(check: Check) -> str | None:
    task = asyncio.current_task()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except BaseException as error:
        if not is_own_failure(error, task):
            raise
        return repr(error)
    return None


async def report(registry: Registry, caller_id: str) -> HealthReport:
    """Return the health report for a caller, whose rate limit is part of it."""
    failing = await failing_checks(registry)
    problems = [f"not ready: {name}" for name in failing]
    problems += [f"degraded: {name}" for name in sorted(registry.health.failing & registry.health.degrading)]
    fields: dict[str, Any] = {}
    for get_part in registry.health.parts:
        part = await get_part(caller_id)
        fields |= part.fields
        problems += part.degraded
    if registry.config.upstream_api_key_env:
        state = "configured" if registry.config.upstream_api_key else "missing"
        fields["auth_config"] = fields.get("auth_config", {}) | {registry.config.upstream_api_key_env: state}
    return HealthReport(
        status="unhealthy" if failing else "degraded" if problems else "healthy",
        timestamp=datetime.now(UTC),
        server_name=registry.about.name,
        version=registry.about.version,
        uptime_seconds=round(time.monotonic() - registry.started_at, 3),
        problems=problems,
        **fields,
    )
