"""Tools from an OpenAPI document: what is made of one, how hostile it may be, and what is said of the rest."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openapi_tools
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_tools import document as document_module
from openapi_tools import names
from openapi_tools.document import Document, DocumentError
from openapi_tools.operations import SelectionError, patterns
from openapi_tools.seed import CASES, REPORT, Seeded, seed
from pydantic import BaseModel, ConfigDict

DOCUMENTS = Path(__file__).parent / "documents"
SOURCES = Path(openapi_tools.__file__).parents[1]
TOOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def made_of(document: dict[str, Any], folder: Path, selection: str = "") -> Seeded:
    path = folder / "document.json"
    path.write_text(json.dumps(document), "utf-8")
    return seed(Document(str(path)), "package", selection)


def with_paths(paths: dict[str, Any], **components: Any) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": paths, "components": components}


def operation(**about: Any) -> dict[str, Any]:
    return {"responses": {"200": {"description": "ok"}}} | about


def findings(seeded: Seeded, kind: str) -> list[tuple[str, str]]:
    return [(each.pointer, each.text) for each in seeded.report.findings if each.kind == kind]


def names_of(seeded: Seeded) -> list[str]:
    return [tool.name for tool in seeded.tools]


@pytest.fixture(scope="module")
def plain() -> Seeded:
    return seed(Document(str(DOCUMENTS / "plain.yaml")), "package")


@pytest.fixture(scope="module")
def modern() -> Seeded:
    return seed(Document(str(DOCUMENTS / "modern.yaml")), "package")


@pytest.fixture(scope="module")
def hostile() -> Seeded:
    return seed(Document(str(DOCUMENTS / "hostile.yaml")), "package")


def case(seeded: Seeded, tool: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in json.loads(seeded.files[CASES]) if each["tool"] == tool)
    return found


# --- What is made ------------------------------------------------------------------------------------------


def test_the_same_document_gives_the_same_bytes() -> None:
    program = (
        "import sys, json; from openapi_tools.document import Document; from openapi_tools.seed import seed;"
        "print(json.dumps([seed(Document(path), 'p').files for path in sys.argv[1:]]))"
    )
    paths = [str(DOCUMENTS / f"{name}.yaml") for name in ("plain", "modern", "hostile")]
    found = {
        subprocess.run(
            [sys.executable, "-c", program, *paths],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert len(found.pop()) > 10_000


def test_json_and_yaml_mean_the_same(tmp_path: Path) -> None:
    content = yaml.safe_load((DOCUMENTS / "modern.yaml").read_text("utf-8"))
    (tmp_path / "modern.json").write_text(json.dumps(content), "utf-8")
    assert (
        seed(Document(str(tmp_path / "modern.json")), "p").files
        == seed(Document(str(DOCUMENTS / "modern.yaml")), "p").files
    )


def test_every_style_of_a_parameter_goes_over_the_wire_as_the_standard_says(plain: Seeded) -> None:
    request = case(plain, "list_pets")["request"]
    text = "a/b c&d=é"
    assert request["query"] == [
        ["limit", "1"],
        ["cursor", text],
        ["tags", text],
        ["tags", text],
        ["ids", "7,7"],
        ["spaced", f"{text} {text}"],
        ["piped", f"{text}|{text}"],
        ["filter[age]", "7"],
        ["filter[owner][name]", text],
        ["sort", "name"],
        ["q", '{"text":"a/b c&d=é"}'],
        ["raw", text],
        ["dry-run", "true"],
    ]
    assert request["headers"] == {"x-request-id": "a b"}
    assert request["cookies"] == {"session": "a%20b"}
    assert case(plain, "get_any")["request"]["path"] == "/any/a%2Fb%20c%26d%3D%C3%A9"
    source = plain.files["src/package/tools/pets.py"]
    for part in (
        '*form("ids", ids, explode=False)',
        '*form("spaced", spaced, explode=False, separator="%20")',
        '*form("piped", piped, explode=False, separator="%7C")',
        '*deep("filter", filter_)',
        '*in_json("q", q)',
        '*form("raw", raw, reserved=True)',
    ):
        assert part in source


def test_bodies_and_answers_are_what_they_are(plain: Seeded) -> None:
    def kinds(tool: str) -> tuple[str, str]:
        found = case(plain, tool)
        return found["request"]["body"]["kind"], found["request"]["body"]["type"]

    assert kinds("create_pet") == ("json", "application/json")
    assert kinds("change_pet") == ("json", "application/merge-patch+json")
    assert kinds("send_form") == ("form", "application/x-www-form-urlencoded")
    assert kinds("upload") == ("multipart", "multipart/form-data")
    assert kinds("replace_file") == ("binary", "application/octet-stream")
    assert kinds("add_note") == ("text", "text/plain")
    results = {each.name: each.answer.kind for each in plain.tools}
    assert (results["get_status"], results["download"], results["delete_pet"]) == ("text", "binary", "nothing")
    assert case(plain, "send_form")["request"]["body"]["content"] == [
        ["name", "a/b c&d=é"],
        ["tags", "a/b c&d=é"],
        ["ids", "7"],
        ["metadata[key]", "a/b c&d=é"],
        ["address", '{"street":"a/b c&d=é"}'],
    ]


def test_a_request_is_strict_and_an_answer_takes_what_a_later_version_adds(plain: Seeded) -> None:
    models = plain.files["src/package/tools/_models.py"]
    asked, answered = class_of(models, "PetInput"), class_of(models, "Pet")
    assert "id:" not in asked
    assert "secret: str" in asked
    assert "min_length=1" in asked
    assert 'Literal["here", "sold"] | None' in asked
    assert "id_: " in answered
    assert "secret" not in answered
    assert "min_length" not in answered
    assert 'Literal["here", "sold"] | str | None' in answered


def class_of(source: str, name: str) -> str:
    return next(
        ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name
    ).replace("'", '"')


def test_rules_that_no_model_checks_are_reported(modern: Seeded) -> None:
    said = dict.fromkeys(text for _, text in findings(modern, "schema"))
    for text in ("uniqueItems is not checked", "not is not checked", "anyOf of rules without types is not checked"):
        assert text in said
    assert [pointer for pointer, _ in findings(modern, "pattern")]
    skipped = findings(modern, "skipped operation")
    assert ("#/webhooks/treeGrew", "the API makes these requests, not the server") in skipped
    assert any("#/nowhere" in text for _, text in findings(modern, "reference"))
    assert modern.files[REPORT].count("uniqueItems is not checked") == 1


def test_a_large_circle_of_schemas_is_taken_apart_and_a_small_one_is_not(modern: Seeded) -> None:
    models = modern.files["src/package/tools/_models.py"]
    assert "next_: Annotated[dict[str, Any] | None" in class_of(models, "N1")
    assert "list[Tree]" in class_of(models, "Tree")
    assert len([text for _, text in findings(modern, "schema") if "lead to each other" in text]) == 14


def test_credentials_are_put_into_the_clients_settings(plain: Seeded) -> None:
    advice = "\n".join(plain.advice)
    assert "UPSTREAM_API_KEY_HEADER=X-Api-Key" in advice
    assert "UPSTREAM_API_KEY_QUERY=api_key" in advice
    assert "UPSTREAM_API_KEY_SCHEME=Basic" in advice
    assert "SESSION=<key>, and UPSTREAM_API_KEY_HEADER=Cookie" in advice
    assert "getting and renewing one is left to you" in advice
    assert findings(plain, "authentication")
    assert "UPSTREAM_API_KEY_QUERY=api_key" in plain.files[REPORT]


def test_a_server_of_its_own_and_a_redirect_are_reported(plain: Seeded) -> None:
    assert findings(plain, "server") == [("#/paths/~1elsewhere/get", "GET /elsewhere: https://other.example.com")]
    assert any("redirect" in text for _, text in findings(plain, "response"))


def test_read_only_is_what_reads(plain: Seeded) -> None:
    source = "".join(plain.files.values())
    assert re.search(r"add\(server, get_pet, .*, READ_ONLY\)", source)
    assert re.search(r"add\(server, head_status, .*, READ_ONLY\)", source)
    assert re.search(r"add\(server, delete_pet, .*, REPLACES\)", source)
    assert re.search(r"add\(server, create_pet, .*, CHANGES\)", source)


# --- Names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("listPets", "list_pets"),
        ("repos/list-for-org", "repos_list_for_org"),
        ("HTTPServerID", "http_server_id"),
        ("2fa.enable", "x_2fa_enable"),
        ("class", "class_"),
        ("type", "type_"),
        ("__init__", "init"),
        ("Größe", "grosse"),
        ("天气", "x"),
        ("", "x"),
        ("a" * 200, "a" * 52 + "c2a908d9"),
    ],
    ids=ascii,
)
def test_a_name_becomes_an_identifier(given: str, expected: str) -> None:
    assert names.snake(given, "x") == expected


def test_equal_names_are_told_apart_and_reserved_ones_avoided(hostile: Seeded) -> None:
    assert names_of(hostile)[:6] == ["import_", "same", "same_2", "same_3", "health_check_2", "register_2"]
    assert len(set(names_of(hostile))) == len(names_of(hostile))
    arguments = [each.name for each in hostile.tools[0].parameters]
    assert arguments[:4] == ["class_", "a_b", "a_b_path", "class_query"]
    renamed = {"ctx_query", "self_", "server_query", "body_query", "form_query", "class_header", "class_cookie"}
    assert renamed <= {*arguments}
    modules = {each.module for each in hostile.tools}
    assert {"class_", "production_2", "etc_passwd", "register_2", "con_2"} <= modules
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", module) for module in modules)


def test_headers_that_are_the_clients_own_or_no_headers_are_left_out(hostile: Seeded) -> None:
    assert [each.wire for each in hostile.tools[0].of("header")] == ["class"]
    assert len([text for _, text in findings(hostile, "parameter") if "left out" in text]) >= 6


def test_without_tags_the_path_names_the_module(tmp_path: Path) -> None:
    paths = {path: {"get": operation()} for path in ("/api/v1/users/{id}", "/api/v1/users", "/api/v1/{x}/orders.json")}
    assert [tool.module for tool in made_of(with_paths(paths), tmp_path).tools] == ["users", "users", "orders"]


def test_a_module_that_the_project_has_is_not_taken() -> None:
    seeded = seed(Document(str(DOCUMENTS / "plain.yaml")), "package", "", frozenset(("pets",)))
    assert {tool.module for tool in seeded.tools} == {"pets_2", "files_and_forms", "elsewhere"}


# --- Selection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("getPet", ["get_pet"]),
        ("get*", ["get_pet", "get_any"]),
        ("oldPet", ["old_pet"]),
        ("files-and-forms", 7),
        ("Pets", 7),
        ("GET /pets, deletePet", ["list_pets", "delete_pet"]),
        ("GET /pets* upload", ["list_pets", "get_pet", "upload"]),
        ("/files/*", ["download", "replace_file"]),
        ("GET /pets/{petId}/old", ["old_pet"]),
        ("*", 15),
    ],
)
def test_a_selection_means_ids_tags_and_paths(selection: str, expected: list[str] | int) -> None:
    found = names_of(seed(Document(str(DOCUMENTS / "plain.yaml")), "package", selection))
    assert found == expected or len(found) == expected, found


def test_a_selection_that_means_nothing_says_what_there_is() -> None:
    with pytest.raises(SelectionError, match=r"'getPets' means no operation of the document; there are, .*getPet"):
        seed(Document(str(DOCUMENTS / "plain.yaml")), "package", "getPets")


def test_a_selection_is_parted_by_commas_and_spaces() -> None:
    assert patterns(" a,b  get /c , /d") == ["a", "b", "GET /c", "/d"]


# --- Documents that cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no object"),
        ("- 1", "is no object"),
        ("{", "is no JSON|is no YAML"),
        ('{"openapi": "3.0.0"} {', "is no JSON: line 1, column 22"),
        ("swagger: '2.0'", "is Swagger 2.0. Convert it to OpenAPI 3 first"),
        ("openapi: 4.0.0", "/openapi is '4.0.0'; 3.0 and 3.1 are read"),
        ("info: {}", "/openapi is None"),
        ("openapi: 3.0.0\npaths: []", "/paths is no object"),
        ("openapi: 3.0.0\nx: !!python/object/apply:os.system [echo]", "is no YAML"),
        ('{"openapi": "3.0.0", "x": NaN}', "NaN is no JSON"),
        ("openapi: 3.0.0\nx: .inf", "a number that JSON lacks"),
        ("openapi: 3.0.0\nx: " + "[" * 500 + "]" * 500, "too large|RecursionError|recursion"),
        (
            "openapi: 3.0.0\na: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "\n".join(f"{n}: &{n} [{','.join(['*' + p] * 10)}]" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
            + "\npaths: []",
            "paths is no object",
        ),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_no_document_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "document.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(DocumentError, match=problem) as refusal:
        Document(str(path))
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("malformed", ["true", "5", "", "text", "{a: 1}"])
def test_what_is_no_list_where_one_belongs_counts_as_none(tmp_path: Path, malformed: str) -> None:
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
    assert names_of(seed(Document(str(path)), "package")) == ["make_thing"]


def test_another_protocol_behind_the_url_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DocumentError, match="cannot be read: SSH-2"):
            Document(f"http://127.0.0.1:{listener.getsockname()[1]}/openapi.json")


def test_a_missing_or_too_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DocumentError, match="cannot be read: No such file or directory"):
        Document(str(tmp_path / "none.yaml"))
    (tmp_path / "large.yaml").write_bytes(b"#" * 2_000_000)
    monkeypatch.setattr(document_module, "MAX_BYTES", 1_048_576)
    with pytest.raises(DocumentError, match="has more than 1 MiB"):
        Document(str(tmp_path / "large.yaml"))


@contextmanager
def served(answers: dict[str, bytes]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_document_is_read_from_a_url_and_its_files_from_beside_it(plain: Seeded) -> None:
    answers = {f"/api/{name}": (DOCUMENTS / name).read_bytes() for name in ("plain.yaml", "common.yaml")}
    with served(answers) as url:
        assert seed(Document(f"{url}/api/plain.yaml"), "package").files == plain.files
        with pytest.raises(DocumentError, match="cannot be read: Not Found"):
            Document(f"{url}/none.yaml")


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("../secret.yaml#/a", "is outside the document's folder"),
        ("/etc/passwd", "is outside the document's folder"),
        ("http://127.0.0.1:9/x.yaml", "is on a server, which a file's \\$ref is not taken to"),
        ("none.yaml#/a", "cannot be read"),
        ("#/components/schemas/none", "is not there"),
        ("#anchor", "is no JSON pointer"),
        ("#/components/schemas/Loop", "leads in a circle"),
    ],
)
def test_a_reference_that_leads_nowhere_is_reported_and_any_value_accepted(
    tmp_path: Path, reference: str, problem: str
) -> None:
    answer = {"200": {"description": "ok", "content": {"application/json": {"schema": {"$ref": reference}}}}}
    loop = {"Loop": {"$ref": "#/components/schemas/Loop"}}
    seeded = made_of(with_paths({"/x": {"get": {"responses": answer}}}, schemas=loop), tmp_path)
    ((pointer, text),) = findings(seeded, "reference")
    assert pointer == "#/paths/~1x/get/responses/200/content/application~1json/schema"
    assert re.search(problem, text)
    assert "-> JsonValue:" in seeded.files["src/package/tools/x.py"]


# --- Any document ------------------------------------------------------------------------------------------

ALLOWED = (
    ast.Module | ast.Expr | ast.Constant | ast.ImportFrom | ast.alias | ast.AsyncFunctionDef | ast.FunctionDef
    | ast.arguments | ast.arg | ast.Name | ast.Load | ast.Store | ast.Subscript | ast.Tuple | ast.List | ast.Dict
    | ast.Call | ast.keyword | ast.Return | ast.Await | ast.Attribute | ast.BinOp | ast.BitOr | ast.Starred
    | ast.ClassDef | ast.AnnAssign | ast.Assign | ast.UnaryOp | ast.USub
)  # fmt: skip
"""What the modules are made of: nothing else may ever come of a document."""

CALLED = {"Field", "ConfigDict", "TypeAdapter", "add", "call", "wire", "form", "deep", "in_json", "json_body"}
CALLED |= {"text_body", "binary_body", "form_body", "multipart_body", "as_json", "as_json_or_done"}
IMPORTED = {"__future__", "typing", "pydantic", "mcp.server.mcpserver", "", "_api"}
ATTRIBUTES = {"model_validate", "validate_python"}


def assert_harmless(seeded: Seeded) -> None:
    for path, source in seeded.files.items():
        if "/tools/" not in path or path.endswith("_api.py"):
            continue
        for node in ast.walk(ast.parse(source)):
            assert isinstance(node, ALLOWED), f"{path}: {ast.unparse(node)}"
            if isinstance(node, ast.Call):
                assert isinstance(node.func, ast.Name), f"{path}: {ast.unparse(node)}"
                assert node.func.id in CALLED, f"{path}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "") in IMPORTED, f"{path}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute):
                base = ast.unparse(node.value)
                assert base == "models" or node.attr in ATTRIBUTES, f"{path}: {ast.unparse(node)}"


def imported_models(seeded: Seeded) -> types.ModuleType:
    """The models, run with a stand-in for `_api`."""
    source = seeded.files.get("src/package/tools/_models.py", "").replace("from ._api import ApiModel", "")

    class ApiModel(BaseModel):
        model_config = ConfigDict(extra="allow", protected_namespaces=())

    module = types.ModuleType("seeded_models")
    vars(module)["ApiModel"] = ApiModel
    sys.modules[module.__name__] = module
    exec(compile(source, "_models.py", "exec"), vars(module))  # noqa: S102 (what has been found harmless)
    for found in [*vars(module).values()]:
        if isinstance(found, type) and issubclass(found, BaseModel):
            found.model_rebuild()
            found.model_json_schema()
    return module


@pytest.mark.parametrize("name", ["plain", "modern", "hostile"])
def test_a_document_gives_nothing_but_models_tools_and_literals(name: str, request: pytest.FixtureRequest) -> None:
    seeded: Seeded = request.getfixturevalue(name)
    assert_harmless(seeded)
    imported_models(seeded)


NASTY = st.one_of(
    st.text(max_size=40),
    st.sampled_from(['"""', "'''\\", "\\", '"', "{}", "class", "__import__('os')", "\u202e", "\r\n", "\x00", "a" * 90]),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NASTY, min_size=12, max_size=12))
def test_any_text_in_any_place_stays_a_text(tmp_path: Path, words: list[str]) -> None:
    path, wire, prop, title, text, value, tag, summary, header, scheme, name, pattern = words
    schema = {
        "type": "object",
        "title": title,
        "description": text,
        "required": [prop, value],
        "properties": {
            prop: {"type": "string", "description": text, "pattern": pattern, "default": value, "format": title},
            value: {"enum": [value, text, 1, True, None]},
            name: {"$ref": f"#/components/schemas/{name}"},
        },
    }
    document = {
        "openapi": "3.0.1",
        "info": {"title": title, "version": value},
        "paths": {
            f"/{path}/{{{wire}}}": {
                "post": {
                    "operationId": name,
                    "tags": [tag],
                    "summary": summary,
                    "description": text,
                    "parameters": [
                        {"name": wire, "in": "path", "required": True, "schema": {"type": "string"}},
                        {"name": wire, "in": "query", "description": text, "schema": {"enum": [value]}},
                        {"name": header, "in": "header", "schema": {"type": "string", "pattern": pattern}},
                        {"name": header, "in": "cookie", "style": text, "schema": schema},
                    ],
                    "requestBody": {"content": {header: {"schema": schema}, "application/json": {"schema": schema}}},
                    "responses": {
                        "200": {"description": text, "content": {"application/json": {"schema": schema}}},
                        text: {"description": text},
                    },
                    "security": [{scheme: []}],
                }
            }
        },
        "components": {
            "schemas": {name: schema},
            "securitySchemes": {scheme: {"type": "apiKey", "in": "header", "name": header}},
        },
    }
    seeded = made_of(document, tmp_path)
    assert_harmless(seeded)
    imported_models(seeded)
    assert all(map(TOOL_NAME.fullmatch, names_of(seeded)))
    assert all(path.isascii() and ".." not in path for path in seeded.files)
    assert all("\r" not in source and "\x00" not in source for source in seeded.files.values())


def test_a_text_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    text = "word " * 200_000
    schema = {"type": "object", "description": text, "properties": {"a": {"type": "string", "description": text}}}
    about = operation(operationId=text, summary=text, description=text)
    about["responses"]["200"]["content"] = {"application/json": {"schema": schema}}
    seeded = made_of(with_paths({"/x": {"get": about}}), tmp_path)
    sources = [source for path, source in seeded.files.items() if "/tools/" in path and not path.endswith("_api.py")]
    assert max(map(len, sources)) < 5_000
