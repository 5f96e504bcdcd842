"""Each tool of the OpenAPI document, called over HTTP with a stand-in for the API.

`openapi.json` beside this file has a case for each tool: its arguments, the request that the API has to receive
(`request`), the stand-in's response and the tool's result (`answer`), and arguments that the tool rejects (`rejected`).
The files are yours, as the tools are.
"""

import base64
import email.parser
import email.policy
import json
import threading
from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from my_server.production.testing import Server

CASES: dict[str, dict[str, Any]] = {
    case["tool"]: case for case in json.loads(Path(__file__).with_name("openapi.json").read_text("utf-8"))
}
INVALID = {name: case.get("rejected", case.get("refused")) for name, case in CASES.items()}
"""Arguments that a tool rejects, which cases of earlier versions call `refused`."""


class StandIn(ThreadingHTTPServer):
    """A stand-in for the API: records the requests and responds to each with `answer`."""

    answer: dict[str, Any]
    requests: list[tuple[str, str, Any, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.requests.append((self.command, self.path, self.headers, body))
        answer = self.server.answer
        content = answer["text"].encode() if "text" in answer else b""
        if "base64" in answer:
            content = base64.b64decode(answer["base64"])
        if "content" in answer:
            content = json.dumps(answer["content"]).encode()
        self.send_response(answer["status"])
        self.send_header("content-type", answer.get("type", "text/plain"))
        if answer["status"] != 204:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # whatever the method
            return self.respond
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture(scope="module")
def api() -> Iterator[StandIn]:
    with StandIn(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(api: StandIn) -> Iterator[Server]:
    with Server(upstream_base_url=f"http://127.0.0.1:{api.server_address[1]}", max_retries=0) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_a_call_sends_the_request_and_returns_the_response(name: str, api: StandIn, server: Server) -> None:
    case = CASES[name]
    api.answer, api.requests = case["answer"], []
    result = server.call(name, case["arguments"])
    assert not result.is_error, result.content
    assert [parsed_request(request, case["request"]) for request in api.requests] == [case["request"]]
    assert result.structured_content == case["answer"]["result"]


@pytest.mark.parametrize("name", [name for name, arguments in INVALID.items() if arguments is not None])
def test_invalid_arguments_are_rejected(name: str, api: StandIn, server: Server) -> None:
    api.requests = []
    result = server.call(name, INVALID[name])
    assert result.is_error
    assert "Invalid arguments" in str(result.content)
    assert api.requests == []


def parsed_request(request: tuple[str, str, Any, bytes], expected: dict[str, Any]) -> dict[str, Any]:
    """Return a request in the form of `openapi.json`, with the headers and cookies that are expected."""
    method, target, headers, body = request
    cookies = SimpleCookie(headers.get("cookie", ""))
    return {
        "method": method,
        "path": urlsplit(target).path,
        "query": [list(pair) for pair in parse_qsl(urlsplit(target).query, keep_blank_values=True)],
        "headers": {name: headers[name] for name in expected["headers"]},
        "cookies": {name: cookies[name].value for name in expected["cookies"]},
        "body": expected["body"] and parsed_body(expected["body"]["kind"], headers["content-type"], body),
    }


def parsed_body(kind: str, media_type: str, body: bytes) -> dict[str, Any]:
    """Return a body in the form of `openapi.json`."""
    content: Any
    if kind == "json":
        content = json.loads(body)
    elif kind == "lines":
        content = [json.loads(line.strip("\x1e")) for line in body.decode().splitlines()]
    elif kind == "form":
        content = [list(pair) for pair in parse_qsl(body.decode(), keep_blank_values=True)]
    elif kind == "multipart":
        head = f"Content-Type: {media_type}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        content = [parsed_part(part) for part in message.iter_parts()]
    else:
        content = base64.b64encode(body).decode() if kind == "binary" else body.decode()
    return {"type": media_type.partition(";")[0], "kind": kind, "content": content}


def parsed_part(part: Any) -> list[Any]:
    """Return name and content of a part: a file with its name, or a text with its media type."""
    name = part.get_param("name", header="content-disposition")
    payload = part.get_payload(decode=True)
    if part.get_filename() is None:
        return [name, payload.decode(), part.get_content_type()]
    encoded = base64.b64encode(payload).decode()
    return [name, {"base64": encoded, "name": part.get_filename(), "media_type": part.get_content_type()}]
