"""Fixtures of the layer's tests, and the choice of those that apply to the project under test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import hypothesis
import pytest
from _pytest.capture import FDCapture

from features import OPTIONAL
from harness import DEADLINE_SECONDS, ENVIRONMENT, NO_TLS, Register, Running, Serve, config, has, running
from stand_in import StandIn, stand_in
from weather_station.production.config import ProductionConfig, variable

hypothesis.settings.register_profile("layer", deadline=None, database=None)
hypothesis.settings.load_profile("layer")

collect_ignore = [f"test_{module.rpartition('.')[2]}.py" for module in OPTIONAL if not has(module)]
collect_ignore += [] if has("inbound.rate_limit") else ["test_rate_limit_tiers.py"]
collect_ignore += [] if has("openapi") else ["test_openapi_media_types.py", "test_openapi_serialisation.py"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose marker `needs` names a module that the project does not have."""
    absent = [item for item in items if not all(map(has, needed_by(item)))]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]


def needed_by(item: pytest.Item) -> list[str]:
    return [module for marker in item.iter_markers("needs") for module in marker.args]


def read_new(capture: FDCapture) -> str:
    """Return what was written since the last time; the next output stays behind it."""
    end = vars(capture).get("read", 0)
    found = []
    while part := os.pread(capture.tmpfile.fileno(), 1 << 20, end):
        found.append(part)
        end += len(part)
    vars(capture)["read"] = end
    return b"".join(found).decode(errors="replace")


# pytest reads and then truncates its file, and loses what another thread writes in between.
FDCapture.snap = read_new  # type: ignore[assignment, method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output, with which pytest-xdist ends."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> Iterator[None]:
    """Keep the machine's environment out of the tests, its proxies and certificates included."""
    own = {variable(name) for name in ProductionConfig.model_fields}
    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.upper() in own or name.startswith(("OTEL_", "SSL_")) or name.lower().endswith("_proxy"):
                environment.delenv(name)
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        yield


@pytest.fixture
def serve() -> Serve:
    """`with serve(register, max_retries=0) as server:` runs a server with these tools and settings."""

    def start(register: Register | None = None, **settings: Any) -> AbstractContextManager[Running]:
        return running(config(**settings), register)

    return start


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """HTTP client for many requests at once."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=DEADLINE_SECONDS, limits=limits, trust_env=False, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def api() -> Iterator[StandIn]:
    """A stand-in of the upstream."""
    with stand_in() as upstream:
        yield upstream
