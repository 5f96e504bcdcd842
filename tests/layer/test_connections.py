"""Limits on the connections of clients, and probes while all of them are in use."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator

import httpx2
import pytest

from harness import (
    HAS_METRICS,
    NO_TLS,
    NO_TOOLS,
    Running,
    Serve,
    command,
    http_process,
    run_python,
    started,
    wait_for,
)
from raw_http import Raw
from weather_station.production.serve import http_protocol
from weather_station.production.serve.connections import MAX_DESCRIPTORS, RESERVE

PROBE = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def idle(server: Running, count: int) -> Iterator[list[Raw]]:
    """Hold connections that send nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Raw(server.base)) for _ in range(count)]


def used(server: Running) -> float | None:
    return server.metrics().value("mcp_http_connections", listener="mcp")


@pytest.mark.parametrize(
    "settings", [{"max_http_connections": 3}, {"max_http_connections_per_address": 3, "trusted_proxies": ("10.0.0.1",)}]
)
def test_beyond_the_limit_a_request_gets_503_with_the_name_of_the_setting(
    settings: dict[str, object], serve: Serve
) -> None:
    with serve(**settings) as server, idle(server, 3) as held:
        with Raw(server.base) as connection:
            connection.send(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            status, body = connection.response()
            assert (status, next(iter(settings)).upper() in json.loads(body)["error"]["message"]) == (503, True)
            assert connection.rest() == b""
        count = server.metrics().value("mcp_http_rejections_total", reason="connections")
        assert (used(server), count) == ((3, 1) if HAS_METRICS else (None, None))
        held[0].socket.close()
        wait_for(lambda: server.get("/elsewhere").status_code == 404)  # a place is free again


def test_an_address_has_no_share_of_its_own_behind_a_trusted_proxy(serve: Serve) -> None:
    settings = {"max_http_connections_per_address": 3, "trusted_proxies": ("127.0.0.0/8",)}
    with serve(**settings) as server, idle(server, 10):
        assert server.get("/elsewhere").status_code == 404


def test_probes_are_answered_while_all_connections_are_in_use(serve: Serve) -> None:
    """Also while the reserve is full of connections that say nothing."""
    with serve(max_http_connections=3) as server, idle(server, 3 + 3 * RESERVE):
        for path in (b"/livez", b"/readyz", b"/health", *([b"/metrics"] if HAS_METRICS else [])):
            with Raw(server.base) as connection:
                connection.send(PROBE % path)
                answer = connection.rest()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer


def test_a_connection_beyond_the_limit_is_not_held(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "RESERVE_SECONDS", 0.05)
    with serve(max_http_connections=1) as server, idle(server, 1), Raw(server.base) as connection:
        assert connection.response()[0] == 503


def test_an_idle_connection_is_closed(serve: Serve) -> None:
    with serve(keep_alive_seconds=0.1) as server, Raw(server.base) as silent, Raw(server.base) as served:
        served.send(PROBE % b"/livez")
        assert served.response()[0] == 200
        assert (silent.rest(), served.rest()) == (b"", b"")


def test_a_kept_alive_connection_is_used_again_after_the_default_of_load_balancers(serve: Serve) -> None:
    with serve() as server:
        assert server.http.config.timeout_keep_alive == 75


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_process_raises_its_limit_of_descriptors() -> None:
    import resource

    with http_process(NO_TOOLS) as process:
        soft, hard = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
        assert soft == (MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_low_limit_of_descriptors_is_a_notice_with_the_name_of_the_setting() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from weather_station.production.config import about
from weather_station.production.registry import Registry
from weather_station.production.serve.connections import connection_limit
registry = Registry(harness.config(), about())
print(connection_limit(registry), registry.notices)
"""
    done = run_python(code)
    assert done.stdout.startswith("44 ['at most 44 client connections instead of MAX_HTTP_CONNECTIONS=4096"), (
        done.stderr
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_more_idle_connections_than_descriptors_leave_the_probes_alone() -> None:
    shell = ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh"]
    settings: dict[str, object] = {"METRICS_PORT": 0} if HAS_METRICS else {}
    with started([*shell, *command(NO_TOOLS, "--port", "0")], None, settings) as process:
        wait_for(lambda: re.search(r"http://[^/\s]+:\d+(?=/mcp)", process.log()))
        (base,) = re.findall(r"http://[^/\s]+:\d+(?=/mcp)", process.log())
        with contextlib.ExitStack() as stack, httpx2.Client(trust_env=False, verify=NO_TLS) as client:
            for _ in range(300):
                stack.enter_context(Raw(base))
            for path in ("/livez", "/readyz"):
                assert client.get(f"{base}{path}").status_code == 200
