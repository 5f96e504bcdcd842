"""Call tools of an OpenAPI document against a stand-in that records the requests, in two ways.

    python openapi_calls.py ours|fastmcp CALLS RECORDS

`ours` runs in a project with generated tools, `fastmcp` in an environment with FastMCP. CALLS has the document, and for
each operation the arguments and the API's response; RECORDS gets what was sent and returned, and the size of the tools.
"""

import asyncio
import base64
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

Answerer = Callable[[dict[str, Any]], Awaitable[tuple[bool, Any, str]]]
"""Calls the tool of an operation; returns whether it failed, the structured content, and the text."""


class Recorder(ThreadingHTTPServer):
    """Records each request, and responds with `answer`."""

    answer: dict[str, Any]
    requests: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Recorder
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = [[name.lower(), value] for name, value in self.headers.items()]
        encoded = base64.b64encode(body).decode()
        self.server.requests.append({"method": self.command, "target": self.path, "headers": headers, "body": encoded})
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
        if name.startswith("do_"):
            return self.respond
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """Write no log."""


def package_of_project() -> str:
    return next(path for path in Path("src").iterdir() if (path / "production").is_dir()).name


async def of_project(calls: dict[str, Any], api: Recorder, record: dict[str, Any]) -> None:
    """Call the tools of the project in the working directory."""
    from mcp import Client

    package = package_of_project()
    config = import_module(f"{package}.production").ProductionConfig(
        upstream_base_url=api.url, rate_limit_requests=10**6, max_retries=0, circuit_failure_threshold=10**6
    )
    server = import_module(f"{package}.server").create_server(config)
    async with Client(server) as client:
        tools = [tool.model_dump(mode="json", by_alias=True) for tool in (await client.list_tools()).tools]
        measure(record, {tool["name"]: tool for tool in tools}, {call["tool"] for call in calls["calls"]})

        async def answer(call: dict[str, Any]) -> tuple[bool, Any, str]:
            result = await client.call_tool(call["tool"], call["arguments"])
            texts = [block.text for block in result.content if block.type == "text"]
            return result.is_error, result.structured_content, "\n".join(texts)

        await run(calls, api, record, answer)


async def of_fastmcp(calls: dict[str, Any], api: Recorder, record: dict[str, Any]) -> None:
    """Call the tools that FastMCP makes of the document."""
    import fastmcp
    import httpx2

    record["version"] = fastmcp.__version__
    server = fastmcp.FastMCP.from_openapi(calls["document"], client=httpx2.AsyncClient(base_url=api.url, timeout=30))
    own = {(tool._route.method.upper(), tool._route.path): tool for tool in await server.list_tools()}
    async with fastmcp.Client(server) as client:
        tools = {tool.name: tool.model_dump(mode="json", by_alias=True) for tool in await client.list_tools()}
        operations = {(call["method"], call["path"]) for call in calls["calls"]}
        measure(record, tools, {tool.name for operation, tool in own.items() if operation in operations})

        async def answer(call: dict[str, Any]) -> tuple[bool, Any, str]:
            tool = own[call["method"], call["path"]]
            arguments = {}
            places = [place["location"] for place in tool._route.parameter_map.values()]
            for name, place in tool._route.parameter_map.items():
                values = call["values"].get(place["location"], {})
                if isinstance(values, dict) and place["openapi_name"] in values:
                    arguments[name] = values[place["openapi_name"]]
                elif place["location"] == "body" and values and places.count("body") == 1:
                    arguments[name] = values  # the whole body
            result = await client.call_tool(tool.name, arguments, raise_on_error=False)
            texts = [block.text for block in result.content if block.type == "text"]
            return result.is_error, result.structured_content, "\n".join(texts)

        await run(calls, api, record, answer)


def measure(record: dict[str, Any], tools: dict[str, Any], names: set[str]) -> None:
    """Record the size of the tools of the operations that are called, as a client gets them."""
    chosen = [tools[name] for name in names if name in tools]
    record["tools"] = len(chosen)
    record["bytes"] = sum(len(json.dumps(tool, separators=(",", ":"))) for tool in chosen)


async def run(calls: dict[str, Any], api: Recorder, record: dict[str, Any], answer: Answerer) -> None:
    for call in calls["calls"]:
        api.answer, api.requests = call["answer"], []
        row: dict[str, Any] = {"operation": f"{call['method']} {call['path']}", "answer": call["answer"]}
        try:
            row["failed"], row["result"], row["text"] = await asyncio.wait_for(answer(call), 60)
        except Exception as error:
            row |= {"failed": True, "result": None, "text": f"{type(error).__name__}: {error}"}
        row["text"] = row["text"][:2000] if row["failed"] else row["text"]
        record["calls"].append(row | {"requests": api.requests})


def main() -> None:
    way, source, target = sys.argv[1:]
    calls = json.loads(Path(source).read_text("utf-8"))
    record: dict[str, Any] = {"calls": []}
    with Recorder(("127.0.0.1", 0), Handler) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        started = time.process_time()
        try:
            asyncio.run({"ours": of_project, "fastmcp": of_fastmcp}[way](calls, api, record))
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"[:500]
        record["seconds"] = round(time.process_time() - started, 1)
        api.shutdown()
    Path(target).write_text(json.dumps(record), "utf-8")


if __name__ == "__main__":
    main()
