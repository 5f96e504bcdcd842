"""Request states and capabilities that hold at every replica and after a restart.

Where a tool asks for input (`input_required`, MCP 2026-07-28), the SDK seals the state of the request into a token
that the client sends back. Only a process with the key can open it: without `REQUEST_STATE_KEYS` the SDK makes a key of
its own in each process.
"""

from __future__ import annotations

import re
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.request_state import RequestStateSecurity
from pydantic import SecretStr

from ..config import ConfigError
from ..registry import Registry
from .guard import resolves_to_loopback

MIN_KEY_BYTES = 32

CHANGES = ("listChanged", "subscribe")
"""Fields of a capability that promise change events, which reach a client by `subscriptions/listen`."""


def install(registry: Registry) -> None:
    """Seal request states with the shared keys, and advertise change events only where they reach every subscriber.

    Raises:
        ConfigError: `REQUEST_STATE_KEYS` has no key, a short one, or one twice.
    """
    config = registry.config
    arguments = dict(registry.server_arguments)
    one_process = config.transport == "stdio" or resolves_to_loopback(config.host)
    if config.request_state_keys is not None:
        arguments["request_state_security"] = RequestStateSecurity(keys=keys_of(config.request_state_keys))
    elif not one_process:
        registry.notices.append(
            "REQUEST_STATE_KEYS is not set: the answer to a question of a tool is rejected by another replica and "
            "after a restart; set the same random keys for all replicas"
        )
    if not one_process:
        arguments["middleware"] = [_CapabilitiesOfReplicas(registry)]
    registry.server_arguments = arguments


def keys_of(secret: SecretStr) -> list[str]:
    """Return the keys of a ring, separated by commas or line breaks: the first seals, all of them open.

    Raises:
        ConfigError: there is none, one is shorter than `MIN_KEY_BYTES`, or one is there twice.
    """
    keys = [key for part in re.split(r"[,\r\n]", secret.get_secret_value()) if (key := part.strip())]
    short = [str(number) for number, key in enumerate(keys, 1) if len(key.encode()) < MIN_KEY_BYTES]
    problem = ""
    if not keys:
        problem = "has no key"
    elif short:
        problem = f"key {', '.join(short)} of {len(keys)} is too short"
    elif len(set(keys)) < len(keys):
        problem = "has a key twice"
    if problem:
        advice = f"separate random keys of at least {MIN_KEY_BYTES} bytes by commas (openssl rand -hex 32 makes one)"
        raise ConfigError([f"REQUEST_STATE_KEYS: {problem}; {advice}"])
    return keys


class _CapabilitiesOfReplicas:
    """Middleware of the SDK: `server/discover` offers change events only where subscriptions are shared.

    An event reaches the subscribers of its own process, and other processes may serve the same clients.
    `subscriptions/listen` is served all the same.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        result = await call_next(ctx)
        shared = "subscriptions" in self._registry.server_arguments
        if ctx.method == "server/discover" and not shared and isinstance(result, dict):
            for capability in result["capabilities"].values():
                capability.update(dict.fromkeys(capability.keys() & set(CHANGES), False))
        return result
