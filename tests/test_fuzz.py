"""Whatever a client sends, the server answers it or hangs up: no 5xx, no crash, no hang, no secret, no file.

`FUZZ_SECONDS` (8 by default) is how long random requests are tried, with a seed that is printed and `FUZZ_SEED` sets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .live_servers import HEADERS, LOCAL, TOKEN, Project, Server, make_project, post, status, tool_call

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECRET = "hunter2-of-the-exception"  # noqa: S105 (must not come back)
INTERNAL_ERROR = -32603
MODERN = {"mcp-protocol-version": "2026-07-28"}
LEAKS = re.compile(rf"Traceback|site-packages|root:x:0|{TOKEN}|{SECRET}")


@dataclass(frozen=True)
class Answer:
    """A response; status 0 and no text if the server closed the connection."""

    status: int
    text: str


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("fuzz") / "project", "extra")


@pytest.fixture(
    params=[
        pytest.param("json", marks=pytest.mark.acceptance),
        pytest.param("sse", marks=pytest.mark.release),  # what rejects a request does not know the mode of its response
    ],
    scope="module",
)
def server(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    settings = {"RESPONSE_MODE": request.param, "MAX_REQUEST_BYTES": 100_000, "TOOL_TIMEOUT_SECONDS": 5}
    with project.serving(log, **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def survives(server: Server) -> Iterator[None]:
    """After every test the server is alive, answers a call, and has logged neither a bug nor a secret."""
    before = len(server.log())
    yield
    assert server.process.poll() is None
    assert status(server.port, "/readyz") == 200
    code, text = post(server.port, tool_call("echo", {"text": "still here"}))
    assert (code, "still here" in text) == (200, True)
    log = server.log()[before:]
    assert "Exception in ASGI application" not in log
    assert TOKEN not in log


def send(port: int, raw: bytes, seconds: float = 10.0) -> Answer:
    """Sends bytes and reads until the server closes, has answered, or `seconds` are over, which fails."""
    data = b""
    with contextlib.suppress(ConnectionError), socket.create_connection((LOCAL, port), seconds) as connection:
        connection.sendall(raw)
        while not _whole(data):
            part = connection.recv(65536)
            if not part:
                break
            data += part
    status_line = re.match(rb"HTTP/1\.1 (\d{3})", data)
    return Answer(int(status_line[1]) if status_line else 0, data.decode("utf-8", "replace"))


def _whole(data: bytes) -> bool:
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    length = re.search(rb"content-length: (\d+)", head.lower())
    return (
        len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n") or b" 204 " in head or b" 202 " in head
    )


def request(body: bytes, headers: dict[str, str] | None = None, target: str = "/mcp", method: str = "POST") -> bytes:
    chosen = {"host": "localhost", **HEADERS, "mcp-protocol-version": "2025-11-25", "connection": "close"}
    chosen |= {"content-length": str(len(body))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in chosen.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body


def harmless(answer: Answer, sent: object) -> None:
    assert answer.status < 500, f"{sent!r:.500} was answered with {answer.text[:1000]}"
    assert LEAKS.search(answer.text) is None, f"{sent!r:.500} was answered with {answer.text[:1000]}"
    for code in re.findall(r'"code":\s*(-?\d+)', answer.text):
        assert int(code) != INTERNAL_ERROR, f"{sent!r:.500} was answered with {answer.text[:1000]}"


def test_malformed_messages(server: Server) -> None:
    good = json.dumps(tool_call("echo", {"text": "x"}))
    bodies = [
        *("", "null", "true", "1", '"text"', "[]", "[1]", "{}", "[{}]", "{", "nonsense", good[:-1], good + good),
        *(f"[{good}]", f"[{good},{good}]", "\x00", "\ufeff" + good, '{"a":1,"a":2}', "NaN", "1e999", "9" * 5000),
        *("[" * 99 + "]" * 99, "[" * 50_000, '{"a":' * 50_000, "[" * 20_000 + "]" * 20_000),
        *(good.replace("2.0", version) for version in ("1.0", "2", "")),
        *(good.replace('"id": 1', f'"id": {value}') for value in ("null", "[]", "{}", "1.5", '""', "true", "1e400")),
        *(good.replace("tools/call", method) for method in ("", "tools/none", "initialize", "../call", "x" * 5000)),
        *(good.replace('{"name"', f'{{"_meta": {value}, "name"') for value in ("null", "1", '{"progressToken": {}}')),
        *(good.replace('{"text": "x"}', value) for value in ("null", "[]", "1", '{"text": "\\ud800"}', '{"": {}}')),
        good.replace('"echo"', '"\\u0000"'),
        good.replace('"params"', '"parms"'),
    ]
    raw = [body.encode("utf-8", "surrogatepass") for body in bodies] + [b"\xff\xfe\x00", b"\x80" * 100]
    for body, headers in itertools.product(
        raw, ({}, MODERN, MODERN | {"mcp-method": "tools/call", "mcp-name": "echo"})
    ):
        harmless(send(server.port, request(body, headers)), body)


def test_oversized_bodies(server: Server) -> None:
    large = json.dumps(tool_call("echo", {"text": "x" * 200_000})).encode()
    assert send(server.port, request(large)).status == 413
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    head = request(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    assert send(server.port, head + chunk * 20 + b"0\r\n\r\n").status in (0, 413)
    for length in ("-1", "1e3", "99999999999999999999", "0x10", "1, 1", ""):
        harmless(send(server.port, request(b"{}", {"content-length": length, "connection": "close"}), 15), length)


VALUES: list[Any] = [
    *(None, True, 0, -1, 2**63, 1e308, -0.0, "", "x", "x" * 5000, "\x00", "\ud83d\ude00", "../../etc/passwd"),
    *([], [[]], [None], {}, {"": {}}, {"name": 1}, "1" * 4000, "${jndi:ldap://x}", "'; DROP TABLE x; --"),
]


def test_wrong_types_for_every_argument(server: Server) -> None:
    _, text = post(server.port, {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
    tools = json.loads(text[text.index("{") :].splitlines()[0])["result"]["tools"]
    assert {tool["name"] for tool in tools} >= {"many_types", "echo", "fetch", "health_check"}
    for tool in tools:
        for name in (*tool["inputSchema"].get("properties", {}), "no_such_argument"):
            for value in VALUES:
                arguments = {"text": "x", "secret": SECRET} | {name: value}
                code, answer = post(server.port, tool_call(tool["name"], arguments))
                harmless(Answer(code, answer), (tool["name"], arguments))


def test_abused_headers(server: Server) -> None:
    body = json.dumps(tool_call("echo", {"text": "x"})).encode()
    values = [
        "",
        " ",
        "x" * 9000,
        "null",
        "*",
        "127.0.0.1:80:80",
        "[::1",
        "evil.example",
        "\t",
        "é",
        "\udcff",
        "%00",
        "-1",
    ]
    names = [
        *("host", "origin", "authorization", "x-forwarded-for", "content-type", "accept", "mcp-protocol-version"),
        *("mcp-session-id", "mcp-method", "mcp-name", "last-event-id", "transfer-encoding", "content-length"),
        *("content-encoding", "traceparent", "expect", "upgrade", "forwarded", "x-forwarded-host"),
    ]
    for name, value in itertools.product(names, values):
        harmless(send(server.port, request(body, {name: value}), 15), (name, value))
    for name in names:  # twice
        raw = request(body).replace(b"\r\n\r\n", f"\r\n{name}: x\r\n{name}: y\r\n\r\n".encode(), 1)
        harmless(send(server.port, raw, 15), name)
    many = request(body).replace(b"\r\n\r\n", b"\r\n" + b"x-a: b\r\n" * 2000 + b"\r\n", 1)
    harmless(send(server.port, many, 15), "2000 headers")
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "localhost@evil.example"):
        assert 400 <= send(server.port, request(body, {"host": host})).status < 500, host
        assert 400 <= send(server.port, request(body, {"origin": f"https://{host}"})).status < 500, host
    for value in (
        "",
        "Bearer",
        "Bearer ",
        "Basic eDp5",
        f"Bearer {TOKEN}x",
        f"bearer{TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
    ):
        assert send(server.port, request(body, {"authorization": value})).status == 401, value


def test_no_path_reaches_another_host(server: Server) -> None:
    targets = [
        *("/..", "/../../etc/passwd", "/mcp/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/.env"),
        *(
            "/mcp/..%2f..%2fetc%2fpasswd",
            "/metrics/../mcp",
            "/mcp;x",
            "/mcp?x=../../etc/passwd",
            "/mcp%00",
            "/\\..\\etc",
        ),
        *("http://evil.example/mcp", "*", "/" + "a" * 20_000, "/.git/config", "/livez/../../etc/passwd"),
    ]
    for target, method in itertools.product(targets, ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "X")):
        raw = request(b"", target=target, method=method)
        stream = method == "GET" and urlsplit(target).path == "/mcp"  # it is open, and that is its answer
        with contextlib.suppress(TimeoutError) if stream else contextlib.nullcontext():
            harmless(send(server.port, raw, 0.5 if stream else 10), raw)


def test_slow_clients_do_not_delay_others(server: Server) -> None:
    body = json.dumps(tool_call("echo", {"text": "x"})).encode()
    complete_request = request(body)
    with contextlib.ExitStack() as open_connections:
        for cut in itertools.islice(
            itertools.cycle((0, 1, 20, len(complete_request) - len(body), len(complete_request) - 1)), 100
        ):
            connection = open_connections.enter_context(socket.create_connection((LOCAL, server.port), 10))
            connection.sendall(complete_request[:cut])
        for _ in range(10):
            began = time.monotonic()
            assert status(server.port, "/livez") == 200
            assert post(server.port, tool_call("echo", {"text": "quick"}))[0] == 200
            assert time.monotonic() - began < 5


def test_the_text_of_an_exception_is_not_sent_to_clients(server: Server) -> None:
    code, text = post(server.port, tool_call("crash", {"secret": SECRET}))
    harmless(Answer(code, text), "crash")
    assert "unexpected error" in text


def test_random_requests(server: Server, figure: Callable[[str], None]) -> None:
    """Good requests with random damage."""
    chance = random.Random(SEED)  # noqa: S311 (to be repeated, not to be secret)
    good = [
        request(json.dumps(message).encode(), headers)
        for message in (tool_call("echo", {"text": "x"}), tool_call("many_types", {"count": 1, "place": {"name": "x"}}))
        for headers in ({}, MODERN | {"mcp-method": "tools/call", "mcp-name": message["params"]["name"]})
    ]
    deadline = time.monotonic() + SECONDS / 2  # for each of the two servers
    count = 0
    while time.monotonic() < deadline:
        raw = damaged(chance.choice(good), chance)
        try:
            harmless(send(server.port, raw, 0.15), raw)
        except TimeoutError:  # the damage made it wait for more
            continue
        count += 1
    assert count > 0
    figure(f"fuzz: {count} random requests, FUZZ_SEED={SEED}")


def damaged(raw: bytes, chance: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randint(1, 20)]
        elif kind == 2:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        else:
            data[at:at] = data[at : at + chance.randint(1, 60)]
    return bytes(data)
