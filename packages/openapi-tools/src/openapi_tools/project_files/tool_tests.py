"""Every tool of the OpenAPI document, called over HTTP, with a stand-in for the API made from that document.

`openapi.json` beside this file has a call for each tool: its arguments, the request that has to arrive, what the
stand-in answers, what the tool has to give, and arguments that it refuses. Yours to change, as the tools are.
"""

import base64
import email.parser
import email.policy
import json
import threading
from collections.abc import Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from .production.harness import Running, config, running, text_of

CASES: dict[str, dict[str, Any]] = {
    case["tool"]: case for case in json.loads(Path(__file__).with_name("openapi.json").read_text("utf-8"))
}
REFUSED = [name for name, case in CASES.items() if case["refused"] is not None]


class StandIn(ThreadingHTTPServer):
    """The API: keeps the requests that arrive, and answers each with `answer`."""

    answer: dict[str, Any]
    arrived: list[tuple[str, str, Any, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.arrived.append((self.command, self.path, self.headers, body))
        answer = self.server.answer
        if "base64" in answer:
            content = base64.b64decode(answer["base64"])
        else:
            content = answer["text"].encode() if "text" in answer else b""
        if "content" in answer:
            content = json.dumps(answer["content"]).encode()
        self.send_response(answer["status"])
        self.send_header("content-type", answer.get("type", "text/plain"))
        if answer["status"] != 204:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_OPTIONS = do_PUT = do_DELETE = do_POST = do_PATCH = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def api() -> Iterator[StandIn]:
    with StandIn(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(api: StandIn) -> Iterator[Running]:
    with running(config(upstream_base_url=f"http://127.0.0.1:{api.server_address[1]}", max_retries=0)) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_a_call_arrives_and_its_answer_comes_back(name: str, api: StandIn, server: Running) -> None:
    case = CASES[name]
    api.answer, api.arrived = case["answer"], []
    result = server.call(name, case["arguments"])
    assert not result.get("isError"), text_of(result)
    assert len(api.arrived) == 1
    assert arrived(api) == case["request"]
    assert result["structuredContent"] == case["answer"]["result"]


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused(name: str, api: StandIn, server: Running) -> None:
    api.arrived = []
    result = server.call(name, CASES[name]["refused"])
    assert result["isError"]
    assert "Invalid arguments" in text_of(result)
    assert api.arrived == []


def arrived(api: StandIn) -> dict[str, Any]:
    """The request, as `openapi.json` has it: of the headers and cookies those that are expected."""
    method, target, headers, body = api.arrived[0]
    expected = next(case["request"] for case in CASES.values() if case["answer"] is api.answer)
    cookies = SimpleCookie(headers.get("cookie", ""))
    return {
        "method": method,
        "path": urlsplit(target).path,
        "query": [list(pair) for pair in parse_qsl(urlsplit(target).query, keep_blank_values=True)],
        "headers": {name: headers[name] for name in expected["headers"]},
        "cookies": {name: cookies[name].value for name in expected["cookies"]},
        "body": None if expected["body"] is None else content(expected["body"]["kind"], headers["content-type"], body),
    }


def content(kind: str, media_type: str, body: bytes) -> dict[str, Any]:
    """A body by what it is."""
    found: Any
    if kind == "json":
        found = json.loads(body)
    elif kind == "form":
        found = [list(pair) for pair in parse_qsl(body.decode(), keep_blank_values=True)]
    elif kind == "multipart":
        head = f"Content-Type: {media_type}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        found = [part_of(part) for part in message.iter_parts()]
    else:
        found = base64.b64encode(body).decode() if kind == "binary" else body.decode()
    return {"type": media_type.partition(";")[0], "kind": kind, "content": found}


def part_of(part: Any) -> list[Any]:
    """Name and content of a part: text, or a file's bytes."""
    name = part.get_param("name", header="content-disposition")
    payload = part.get_payload(decode=True)
    return [name, {"base64": base64.b64encode(payload).decode()} if part.get_filename() else payload.decode()]
