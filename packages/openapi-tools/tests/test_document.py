"""Reading documents: formats, limits, errors and references."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_builders import (
    DOCUMENTS,
    document_with,
    findings,
    generate_from,
    generate_from_file,
    json_response,
    tool_names,
)
from openapi_tools import Document, DocumentError, Generated, generate, loading


def test_json_and_yaml_give_the_same_files(tmp_path: Path, modern: Generated) -> None:
    content = yaml.safe_load((DOCUMENTS / "modern.yaml").read_text("utf-8"))
    path = tmp_path / "modern.json"
    path.write_text(json.dumps(content), "utf-8")
    assert generate(Document(str(path)), "package").files == modern.files


ALIASES_OF_A_HUNDRED_MILLION_VALUES = (
    "openapi: 3.0.0\na: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{n}: &{n} [{','.join(['*' + p] * 10)}]" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
    + "\npaths: []"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is not an object"),
        ("- 1", "it is not an object"),
        ("{", "is not valid YAML"),
        ('{"openapi": "3.0.0"} {', "is not valid JSON: line 1, column 22"),
        ("swagger: '1.2'", "is Swagger 1.2; version 2.0 and OpenAPI 3 are supported"),
        ("openapi: 4.0.0", "/openapi is '4.0.0'; versions 3.0 to 3.2 are supported"),
        ("info: {}", "/openapi is None"),
        ("openapi: 3.0.0\npaths: []", "/paths is not an object"),
        ("openapi: 3.0.0\nx: !!python/object/apply:os.system [echo]", "is not valid YAML"),
        ('{"openapi": "3.0.0", "x": NaN}', "NaN is not a JSON number"),
        ("openapi: 3.0.0\nx: .inf", "a number that is not finite"),
        ("openapi: 3.0.0\nx: " + "[" * 500 + "]" * 500, "nested too deep|RecursionError|recursion"),
        (ALIASES_OF_A_HUNDRED_MILLION_VALUES, "/paths is not an object"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_unusable_document_is_rejected_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "document.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(DocumentError, match=problem) as error:
        Document(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("malformed", ["true", "5", "", "text", "{a: 1}"])
def test_another_value_in_place_of_an_array_counts_as_an_empty_one(tmp_path: Path, malformed: str) -> None:
    schema = f"{{type: object, required: {malformed}, properties: {{x: {{type: object, required: {malformed}}}}}}}"
    path = tmp_path / "document.yaml"
    path.write_text(
        f"""openapi: 3.0.0
tags: {malformed}
servers: [{{url: https://api.example.com}}]
paths:
  /things:
    post:
      operationId: makeThing
      tags: {malformed}
      servers: {malformed}
      security: [{malformed}]
      requestBody: {{content: {{application/json: {{schema: {schema}}}}}}}
      responses: {{"200": {{content: {{application/json: {{schema: {schema}}}}}}}}}
""",
        "utf-8",
    )
    assert tool_names(generate(Document(str(path)), "package")) == ["make_thing"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.yaml cannot be read: No such file or directory"):
        Document(str(tmp_path / "none.yaml"))


def test_a_file_above_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * 2_000_000)
    monkeypatch.setattr(loading, "MAX_BYTES", 1_048_576)
    with pytest.raises(DocumentError, match="has more than 1 MiB"):
        Document(str(path))


@contextmanager
def http_server(content_by_path: dict[str, bytes]) -> Iterator[str]:
    """Serve these paths and yield the URL of the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = content_by_path.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_url_and_the_files_beside_it_are_read(plain: Generated) -> None:
    content = {f"/api/{name}": (DOCUMENTS / name).read_bytes() for name in ("plain.yaml", "common.yaml")}
    with http_server(content) as url:
        assert generate(Document(f"{url}/api/plain.yaml"), "package").files == plain.files
        with pytest.raises(DocumentError, match="cannot be read: Not Found"):
            Document(f"{url}/none.yaml")


def test_a_header_is_sent_only_to_the_documents_server() -> None:
    received: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append((self.path, self.headers.get("Authorization")))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{self.connection.getsockname()[1]}/elsewhere")
                self.end_headers()
                return
            self.send_response(200 if self.path == "/elsewhere" or received[-1][1] == "Bearer x" else 401)
            self.end_headers()
            self.wfile.write(b"openapi: 3.0.0\npaths: {}")

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(DocumentError, match="cannot be read: Unauthorized"):
            Document(f"{url}/openapi.yaml")
        Document(f"{url}/openapi.yaml", headers={"Authorization": "Bearer x"})
        Document(f"{url}/moved", headers={"Authorization": "Bearer x"})
        server.shutdown()
    assert received[-2:] == [("/moved", "Bearer x"), ("/elsewhere", None)]


@pytest.mark.parametrize(
    ("servers", "base_url", "problem"),
    [
        ([], "https://a.example/v1", ""),
        ([{"url": "https://a.example/v1/"}], "https://a.example/v1", ""),
        ([{"url": "http://a.example/v1"}], "https://a.example/v1", ""),
        (
            [{"url": "https://{where}.example/{v}", "variables": {"where": {"default": "a"}, "v": {"default": "v1"}}}],
            "https://a.example/v1",
            "",
        ),
        ([{"url": "/v1"}], "https://a.example", ""),
        ([{"url": "https://a.example/v1"}], "https://a.example", "The host is the same and the path is not"),
        ([{"url": "https://a.example/v1"}], "https://b.example/v1", "the document names https://a.example/v1"),
    ],
)
def test_the_servers_are_compared_with_the_base_url(
    tmp_path: Path, servers: list[Any], base_url: str, problem: str
) -> None:
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document_with({}) | {"servers": servers}), "utf-8")
    texts = generate(Document(str(path)), "package", base_url=base_url).report.texts("base url")
    assert bool(texts) == bool(problem)
    assert problem in "".join(texts)


def test_a_server_that_does_not_speak_http_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DocumentError, match="cannot be read: SSH-2"):
            Document(f"http://127.0.0.1:{listener.getsockname()[1]}/openapi.json")


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("../secret.yaml#/a", "is outside the folder .*--root"),
        ("/etc/passwd", "is outside the folder .*--root"),
        ("http://127.0.0.1:9/x.yaml", "is a URL, which is not fetched for a document that is a file"),
        ("none.yaml#/a", "cannot be read"),
        ("#/components/schemas/none", "does not exist"),
        ("#anchor", "is not a JSON pointer"),
        ("#/components/schemas/Loop", "is circular"),
    ],
)
def test_an_unresolved_reference_is_reported_and_any_value_accepted(
    tmp_path: Path, reference: str, problem: str
) -> None:
    paths = {"/x": {"get": {"responses": json_response({"$ref": reference})}}}
    loop = {"Loop": {"$ref": "#/components/schemas/Loop"}}
    generated = generate_from(document_with(paths, schemas=loop), tmp_path)
    ((pointer, text),) = findings(generated, "reference")
    assert pointer == "#/paths/~1x/get/responses/200/content/application~1json/schema"
    assert re.search(problem, text)
    assert "-> Answer[Any]:" in generated.files["src/package/tools/x.py"]


def test_a_reference_to_another_server_is_not_fetched() -> None:
    document = document_with({"/x": {"get": {"responses": json_response({"$ref": "http://127.0.0.2:9/x.json"})}}})
    with http_server({"/openapi.json": json.dumps(document).encode()}) as url:
        generated = generate(Document(f"{url}/openapi.json"), "package")
    ((_, text),) = findings(generated, "reference")
    assert "is on another server than the document, which is not contacted" in text


def test_references_of_a_file_beside_the_document_are_resolved_from_there() -> None:
    generated = generate_from_file("plain.yaml", "getPet")
    assert "owner: Owner | None = None" in generated.files["src/package/tools/_models.py"]
    assert findings(generated, "reference") == []
