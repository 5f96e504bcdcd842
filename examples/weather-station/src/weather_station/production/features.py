"""The features of this project by the names of their switches, in the order of installation, and its commands.

`uvx copier update --trust --defaults --vcs-ref=:current: --data enable_x=true` adds a feature, `=false` removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .inbound.auth_token import install as auth_token
from .inbound.caller_limits import install as caller_limits
from .inbound.concurrency import install as concurrency
from .inbound.direct import install as direct
from .inbound.identity import install as identity
from .inbound.long_calls import install as long_calls
from .inbound.rate_limit import install as rate_limit
from .inbound.replicas import install as replicas
from .inbound.response_mode import install as response_mode
from .inbound.result_budget import install as result_budget
from .inbound.single_use import install as single_use
from .inbound.tool_selection import install as tool_selection
from .observe.logging import install as logging
from .observe.metrics import install as metrics
from .observe.telemetry_http import install as telemetry_http
from .registry import Registry
from .serve.console import call, dev, inspect
from .serve.definitions import install as definitions
from .serve.env_file import init_env
from .serve.host_config import print_config
from .serve.listeners import install as listeners
from .serve.options import install as options
from .upstream.circuit_breaker import install as circuit_breaker
from .upstream.retry import install as retry
from .upstream.shares import install as shares

FEATURES: Mapping[str, Callable[[Registry], None]] = {
    "identity": identity,
    "options": options,
    "once": single_use,
    "replicas": replicas,
    "metrics": metrics,
    "logging": logging,
    "telemetry": telemetry_http,
    "auth": auth_token,
    "caller_limits": caller_limits,
    "shares": shares,
    "tool_selection": tool_selection,
    "definitions": definitions,
    "rate_limiting": rate_limit,
    "direct": direct,
    "response_mode": response_mode,
    "long_calls": long_calls,
    "concurrency": concurrency,
    "result_budget": result_budget,
    "retries": retry,
    "circuit_breaker": circuit_breaker,
    "listeners": listeners,
}

COMMANDS: Mapping[str, Callable[[Any, Mapping[str, Any]], list[str] | int]] = {
    "init_env": init_env,
    "print_config": print_config,
    "call": call,
    "dev": dev,
    "inspect": inspect,
}
"""The function of each option of the command line that does not start the server.

It gets the option's value and the overrides of settings, and returns messages or an exit status.
"""
