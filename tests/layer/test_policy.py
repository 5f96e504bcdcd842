"""Policies: a function's own limits, however it is registered, and mistakes in them before the server serves."""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp_types import Completion

from harness import (
    DEADLINE_SECONDS,
    HAS_METRICS,
    HEADERS,
    LEGACY,
    MODERN,
    Running,
    Serve,
    config,
    has,
    message,
    modern,
    running,
    text_of,
    wait_for,
)
from test_tool_loader import registering, start
from weather_station.production import policy
from weather_station.production.config import StartError
from weather_station.production.policy import Policy, policy_of
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

HANDLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tool": ("tools/call", {"name": "waits", "arguments": {}}),
    "tool with the policy above": ("tools/call", {"name": "waits_above", "arguments": {}}),
    "plain def tool": ("tools/call", {"name": "waits_in_a_thread", "arguments": {}}),
    "tool behind a decorator": ("tools/call", {"name": "waits_wrapped", "arguments": {}}),
    "method": ("tools/call", {"name": "waits_as_a_method", "arguments": {}}),
    "resource": ("resources/read", {"uri": "test://waits"}),
    "template": ("resources/read", {"uri": "test://waits/7"}),
    "prompt": ("prompts/get", {"name": "waits", "arguments": {}}),
    "completion": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "waits"}, "argument": {"name": "x", "value": ""}},
    ),
}

both_generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


class Waiting:
    """Handlers of every kind that wait until `end` is set, each with the policy `limits`."""

    def __init__(self, limits: Policy) -> None:
        self.limits = limits
        self.end = threading.Event()
        self.running = 0

    async def wait(self) -> str:
        await anyio.to_thread.run_sync(self.wait_here, abandon_on_cancel=True)
        return "waited"

    def wait_here(self) -> str:
        self.running += 1
        self.end.wait(DEADLINE_SECONDS)
        self.running -= 1
        return "waited"

    def register(self, server: ProductionServer) -> None:
        limits, wait = self.limits, self.wait

        @server.tool()
        @limits
        async def waits() -> str:
            return await wait()

        @limits
        @server.tool()
        async def waits_above() -> str:
            return await wait()

        @server.tool()
        @limits
        def waits_in_a_thread() -> str:
            return self.wait_here()

        @limits
        async def wrapped() -> str:
            return await wait()

        @functools.wraps(wrapped)
        async def wrapper() -> str:
            return await wrapped()

        server.tool(name="waits_wrapped")(wrapper)

        class Owner:
            @limits
            async def method(self) -> str:
                return await wait()

        server.tool(name="waits_as_a_method")(Owner().method)

        @limits
        @server.resource("test://waits")
        async def resource() -> str:
            return await wait()

        @server.resource("test://waits/{number}")
        @limits
        async def template(number: int) -> str:
            return await wait()

        @limits
        @server.prompt(name="waits")
        async def prompt() -> str:
            return await wait()

        @limits
        @server.completion()
        async def complete(*arguments: Any) -> Completion:
            return Completion(values=[await wait()])

        @server.tool()
        async def waits_without_limits() -> str:
            return await wait()


def ask(server: Running, version: str, name: str) -> dict[str, Any]:
    method, params = HANDLERS[name]
    content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
    answer: dict[str, Any] = server.client.post(server.url, json=content, headers=headers).json()
    return answer


def failure_of(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "error" in answer:
        return answer["error"]["message"], answer["error"]["data"]
    assert answer["result"]["isError"], answer
    return text_of(answer["result"]), answer["result"]["_meta"]


@pytest.fixture(scope="module")
def short() -> Iterator[tuple[Running, Waiting]]:
    waiting = Waiting(policy(timeout=0.05))
    with serving(waiting) as server:
        yield server, waiting
        waiting.end.set()


@contextmanager
def serving(waiting: Waiting) -> Iterator[Running]:
    with running(config(tool_timeout_seconds=DEADLINE_SECONDS), waiting.register) as server:
        yield server


@both_generations
@pytest.mark.parametrize("name", HANDLERS)
def test_a_timeout_is_that_of_the_policy(short: tuple[Running, Waiting], version: str, name: str) -> None:
    text, meta = failure_of(ask(short[0], version, name))
    assert text.endswith(" did not finish within 0.05 seconds and was stopped.")
    assert meta["timeout_seconds"] == 0.05


def test_a_timeout_can_be_longer_than_the_servers(serve: Serve) -> None:
    waiting = Waiting(policy(timeout=DEADLINE_SECONDS))
    with serve(waiting.register, tool_timeout_seconds=0.05) as server, ThreadPoolExecutor(1) as pool:
        longer = pool.submit(server.call, "waits")
        wait_for(lambda: waiting.running == 1)
        assert "did not finish within 0.05 seconds" in text_of(server.call("waits_without_limits"))
        waiting.end.set()
        assert text_of(longer.result()) == "waited"


if has("inbound.concurrency"):
    LIMIT = 2

    @both_generations
    @pytest.mark.parametrize("name", HANDLERS)
    def test_requests_beyond_the_concurrency_are_rejected(
        limited: tuple[Running, Waiting], version: str, name: str
    ) -> None:
        server, waiting = limited
        waiting.end.clear()
        with ThreadPoolExecutor(LIMIT + 1) as pool:
            requests = [pool.submit(ask, server, version, name) for _ in range(LIMIT)]
            wait_for(lambda: waiting.running == LIMIT)
            other = pool.submit(server.call, "waits_without_limits")
            wait_for(lambda: waiting.running == LIMIT + 1)
            before = rejections(server)
            answer = ask(server, version, name)
            waiting.end.set()
            assert all("result" in request.result() for request in requests)
            assert text_of(other.result()) == "waited", "the limit is one of each target"
        text, meta = failure_of(answer)
        assert re.fullmatch(
            rf"Concurrency limit exceeded\. \S.* handles {LIMIT} requests at a time\. Try again in 1 seconds\.", text
        )
        assert (meta["limit"], meta["retry_after_seconds"]) == (LIMIT, 1)
        assert ("error" in answer) == (HANDLERS[name][0] != "tools/call")
        if HAS_METRICS:
            assert rejections(server) == before + 1
        assert "result" in ask(server, version, name), "what has ended counts no more"

    @pytest.fixture(scope="module")
    def limited() -> Iterator[tuple[Running, Waiting]]:
        waiting = Waiting(policy(concurrency=LIMIT))
        with serving(waiting) as server:
            yield server, waiting

    def rejections(server: Running) -> float:
        return sum(
            value
            for (name, labels), value in server.metrics().samples.items()
            if name == "mcp_server_operation_duration_seconds_count" and ("error_type", "ConcurrencyLimited") in labels
        )

    @pytest.mark.parametrize("name", ["tool", "plain def tool", "prompt"])
    def test_a_request_that_fails_or_is_stopped_counts_no_more(serve: Serve, name: str) -> None:
        waiting = Waiting(policy(concurrency=1, timeout=0.05))
        with serve(waiting.register) as server:
            for _ in range(3):
                assert "did not finish within" in failure_of(ask(server, MODERN, name))[0]
            waiting.end.set()

    def test_a_burst_runs_as_many_as_the_limit(serve: Serve) -> None:
        waiting = Waiting(policy(concurrency=LIMIT))
        with serve(waiting.register) as server, ThreadPoolExecutor(20) as pool:
            answers: list[Future[dict[str, Any]]] = [pool.submit(server.call, "waits") for _ in range(20)]
            wait_for(lambda: sum(answer.done() for answer in answers) == 20 - LIMIT)
            assert waiting.running == LIMIT
            waiting.end.set()
            assert sum("isError" not in a.result() or not a.result()["isError"] for a in answers) == LIMIT

else:

    def test_a_field_without_its_feature_stops_the_start(tmp_path: Path) -> None:
        above = "from ..production import policy\n\n@policy(concurrency=1)"
        done = start(tmp_path, {"ask": registering("async def ask() -> str: ...", above)})
        assert done.returncode == 1
        assert re.search(
            r"ask\.py:\d+: policy\(concurrency=\.\.\.\): this project has no concurrency feature\. "
            r"Add it with: uvx copier update .* profile=custom",
            done.stderr,
        )


async def test_a_field_without_its_feature_stops_the_start_whatever_the_order() -> None:
    def register(server: ProductionServer, *decorators: Callable[..., Any]) -> None:
        async def ask() -> str:
            return "answered"

        for decorator in decorators:
            ask = decorator(ask)

    server = create_server(config())
    server.registry.policy_fields.discard("concurrency")
    limits = policy(timeout=1, concurrency=1)
    for registers in (server.tool(), server.resource("test://ask"), server.prompt(), server.completion()):
        with pytest.raises(StartError, match=r"policy\(concurrency=\.\.\.\): .* profile=custom$"):
            register(server, limits, registers)
    server = create_server(config())
    server.registry.policy_fields.discard("concurrency")
    register(server, server.tool(), limits)
    with pytest.raises(StartError, match=r"policy\(concurrency=\.\.\.\): .* profile=custom$"):
        async with server.running():
            pass


MISTAKES = {
    "scope='x'": "TypeError: .* got an unexpected keyword argument 'scope'",
    "5": "TypeError: .* positional argument.*",
    "timeout='5'": "TypeError: policy: timeout='5' is not a number of seconds above 0",
    "timeout=True": "TypeError: policy: timeout=True is not .*",
    "timeout=0": "ValueError: policy: timeout=0 is not .*",
    "timeout=-1.5": "ValueError: .*",
    "timeout=float('nan')": "ValueError: policy: timeout=nan is not .*",
    "timeout=float('inf')": "ValueError: .*",
    "concurrency=0": "ValueError: policy: concurrency=0 is not an integer of at least 1",
    "concurrency=1.0": "TypeError: .*",
    "concurrency=True": "TypeError: .*",
    "concurrency=[1]": "TypeError: .*",
}


def test_mistakes_stop_the_start_in_one_line_each(tmp_path: Path) -> None:
    modules = {
        f"ask_{number}": registering(
            "async def ask() -> str: ...", f"from ..production import policy\n@policy({mistake})"
        )
        for number, mistake in enumerate(MISTAKES)
    }
    done = start(tmp_path, modules)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()[-len(MISTAKES) :]
    for number, expected in enumerate(MISTAKES.values()):
        assert any(re.search(rf"ask_{number}\.py:2: {expected}$", line) for line in lines), done.stderr


async def test_a_policy_without_parentheses_or_on_what_cannot_keep_it_is_an_error() -> None:
    async def ask() -> str:
        return "answered"

    without_parentheses: Any = policy
    with pytest.raises(TypeError, match="positional argument"):
        without_parentheses(ask)
    unable: list[Any] = [len, [].append, Waiting(policy()).wait]
    for fn in unable:
        with pytest.raises(TypeError, match="cannot have one; decorate a function, or a method in its class"):
            policy(timeout=1)(fn)


def test_a_policy_changes_nothing_else() -> None:
    async def ask(number: int) -> str:
        """Ask."""
        return "answered"

    signature = inspect.signature(ask)
    assert policy(timeout=1)(ask) is ask
    assert inspect.signature(ask) == signature
    assert policy(concurrency=2)(ask) is ask
    assert policy_of(ask) == Policy(timeout=1, concurrency=2)
    assert policy_of(policy(timeout=3)(ask)) == Policy(timeout=3, concurrency=2)
