"""Fixtures of the production tests: servers of this project on real sockets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from weather_station.production.config import ProductionConfig, variable

from .. import ENVIRONMENT
from .harness import DEADLINE_SECONDS, NO_TLS, Register, Running, config, running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> Iterator[None]:
    """The machine's environment decides nothing in a test, its proxies for the way out included."""
    own = {variable(name) for name in ProductionConfig.model_fields} - ENVIRONMENT.keys()
    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.upper() in own or name.startswith("OTEL_") or name.lower().endswith("_proxy"):
                environment.delenv(name)
        yield


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[Running]]:
    """`with serve(register, max_retries=0) as server:` runs a server with these settings and extra tools."""

    def start(register: Register | None = None, **settings: Any) -> AbstractContextManager[Running]:
        return running(config(**settings), register)

    return start


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client for many requests at once."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=DEADLINE_SECONDS, limits=limits, trust_env=False, verify=NO_TLS) as client:
        yield client
