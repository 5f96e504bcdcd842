"""Audit: every request and every decision has one record of the published form, and none is lost unnoticed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CLIENT_INFO_META_KEY, ClientCapabilities, Implementation, InitializeRequestParams
from opentelemetry import trace
from starlette.requests import Request

from harness import (
    DEADLINE_SECONDS,
    HEADERS,
    INITIALIZE,
    LEGACY,
    MODERN,
    Running,
    config,
    message,
    modern,
    running,
    stdio_process,
)
from weather_station.production import Caller, policy
from weather_station.production.caller import address_id
from weather_station.production.config import ConfigError
from weather_station.production.inbound import audit as audit_module
from weather_station.production.inbound import audit_sinks
from weather_station.production.inbound.audit import MAX_RECORD, digest, encoded
from weather_station.production.inbound.audit_sinks import FileSink, StderrSink
from weather_station.production.observe.redaction import Redactor, shorten
from weather_station.production.observe.stderr import Stderr
from weather_station.production.policy import Policy
from weather_station.production.request import MCPRequest
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

Record = dict[str, Any]
Start = Callable[..., AbstractContextManager["Audited"]]

ARGUMENTS = {"text": "ä", "password": "s3cret-value"}
SCHEMA = json.loads((Path(__file__).parents[2] / "template" / "docs" / "audit.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


def register(server: ProductionServer) -> None:
    @server.tool()
    async def echo(text: str, password: str = "") -> str:
        return text

    @policy(audit="omit")
    @server.tool()
    async def private(text: str) -> str:
        return text

    @policy(audit="redacted")
    @server.tool()
    async def shown(text: str, password: str = "") -> str:
        return text

    @server.tool()
    async def fails() -> str:
        raise ToolError("on purpose")

    @server.tool()
    async def crashes() -> str:
        raise ZeroDivisionError

    @server.tool()
    async def slow() -> str:
        await asyncio.sleep(60)
        return "never"

    @server.resource("orders://{number}")
    async def order(number: str) -> str:
        return number

    @server.prompt()
    async def summary(of: str) -> str:
        return of


class Audited:
    """A running server, and the records that it has written."""

    def __init__(self, running: Running, path: Path) -> None:
        self.running = running
        self.path = path

    def send(self, method: str, params: Record | None = None, version: str = LEGACY, **headers: str) -> httpx2.Response:
        content, known = (message(method, params or {}), HEADERS) if version == LEGACY else modern(method, params)
        return self.running.client.post(self.running.url, json=content, headers=known | headers)

    def call(self, tool: str, version: str = LEGACY, /, **arguments: Any) -> Record:
        answer: Record = self.send("tools/call", {"name": tool, "arguments": arguments}, version).json()
        return answer

    def records(self) -> list[Record]:
        return read(self.path)

    def dropped(self) -> float | None:
        return self.running.metrics().value("mcp_audit_records_dropped_total")


def read(*paths: Path) -> list[Record]:
    """Return the records in files, each valid by the schema."""
    records = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    for record in records:
        VALIDATOR.validate(record)
    return records


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`with audited(fsync="true") as server:` runs a server with these settings of the audit, which writes a file."""

    @contextmanager
    def start(settings: Record | None = None, /, **audit: object) -> Iterator[Audited]:
        path = Path(str(audit.get("file", tmp_path / "audit.jsonl")))
        for name, value in ({"sink": "file", "file": path} | audit).items():
            monkeypatch.setenv(f"AUDIT_{name.upper()}", str(value))
        with running(config(**(settings or {})), register) as server:
            yield Audited(server, path)

    return start


@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_every_request_has_one_record_of_the_published_form(audited: Start, version: str) -> None:
    with audited({"enable_authorization": False, "log_level": "CRITICAL"}) as server:
        server.call("echo", version, **ARGUMENTS)
        server.call("echo", version)
        server.call("fails", version)
        server.call("crashes", version)
        server.call("nothing", version)
        server.send("resources/read", {"uri": "orders://7"}, version)
        server.send("prompts/get", {"name": "summary", "arguments": {"of": "x"}}, version)
        server.send("tools/list", {}, version)
        server.send("made/up", {}, version)
        records = server.records()
    assert [
        (record["method"], record.get("target"), record["outcome"], record.get("error_type")) for record in records
    ] == [
        ("tools/call", "echo", "success", None),
        ("tools/call", "echo", "client_error", "InvalidArguments"),
        ("tools/call", "fails", "client_error", "ToolError"),
        ("tools/call", "crashes", "error", "ZeroDivisionError"),
        ("tools/call", "unknown", "client_error", "UnknownTool"),
        ("resources/read", "orders://{number}", "success", None),
        ("prompts/get", "summary", "success", None),
        ("tools/list", None, "success", None),
        ("unknown", None, "client_error", "MethodNotFound"),
    ]
    assert {record["event"] for record in records} == {"request"}
    assert {record["decision"] for record in records} == {"allowed"}
    assert {(record["caller"], record["address"]) for record in records} == {("127.0.0.1", "127.0.0.1")}
    assert len({record["request_id"] for record in records}) == len(records)
    assert records[4]["requested"] == "nothing"
    assert records[5]["arguments_sha256"] == digest({"uri": "orders://7"})
    assert "s3cret-value" not in json.dumps(records)


def test_the_host_application_is_what_the_client_says(audited: Start) -> None:
    with audited() as server:
        content, headers = modern("ping")
        content["params"]["_meta"][CLIENT_INFO_META_KEY] = {"name": "an application", "version": "v" * 1000}
        server.running.client.post(server.running.url, json=content, headers=headers)
        [record] = server.records()
    assert record["host_application"] == "an application"
    assert record["host_version"].startswith("v" * 100 + "...")


def test_arguments_are_hashed_redacted_or_left_out(audited: Start) -> None:
    with audited(arguments="redacted") as server:
        for tool in ("echo", "shown"):
            server.call(tool, **ARGUMENTS)
        server.call("private", text="x")
        echo, shown, private = server.records()
    for record in (echo, shown):
        assert record["arguments"] == {"text": "ä", "password": "[redacted]"}
        assert "arguments_sha256" not in record
    assert not {"arguments", "arguments_sha256"} & private.keys()


def test_the_hash_can_be_computed_by_others() -> None:
    text = '{"a":[1,2.5,null,true],"b":{"c":"ä"}}'
    assert digest({"b": {"c": "ä"}, "a": [1, 2.5, None, True]}) == hashlib.sha256(text.encode()).hexdigest()
    assert digest({"n": 2**70}) == hashlib.sha256(b'{"n":1180591620717411303424}').hexdigest()


TEXT = st.text(st.characters(exclude_categories=()))
NUMBER = st.integers(-(2**90), 2**90) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    max_leaves=20,
)


@given(arguments=JSON, times=st.sampled_from([1, 3000]), host=TEXT)
def test_whatever_a_client_sends_a_record_is_one_valid_line_of_bounded_size(
    arguments: Any, times: int, host: str
) -> None:
    record = {"audit": 1, "event": "request", "host_application": host * times, "arguments": [arguments] * times}
    line = encoded(record)
    assert len(line) <= MAX_RECORD
    assert line.count(b"\n") == 1
    written = json.loads(line)
    assert len(digest([arguments] * times)) == 64
    if "arguments" not in written:
        assert written["arguments_sha256"] == digest([arguments] * times)


def session_of(client_params: Any) -> Any:
    """What a record reads of a session: how the client introduced itself."""
    return SimpleNamespace(client_params=client_params)


@cache
def recorder() -> Any:
    """The audit of a server that is not running."""
    return create_server(config()).registry.audit


def expected_record(
    request: MCPRequest, address: str, began: datetime, duration_ms: float, trace_id: int, redactor: Redactor
) -> Record:
    """Return the record of a request, field by field as docs/audit.schema.json has them."""
    caller, ctx = request.caller, request.context
    denied = request.status == "rejected" or request.error_type == "AuditUnavailable"
    record: Record = {"audit": 1, "time": began, "event": "request", "decision": "denied" if denied else "allowed"}
    record |= {"outcome": request.status, "caller": caller.id, "address": address, "method": request.method}
    record |= {"request_id": request.request_id, "duration_ms": duration_ms}
    for name in ("subject", "client", "issuer", "tenant", "tier"):
        if getattr(caller, name):
            record[name] = getattr(caller, name)
    if request.target_label:
        record["target"] = request.target_label
    takes_arguments = request.method in ("tools/call", "prompts/get")
    if request.target_label == "unknown" and takes_arguments:
        record["requested"] = redactor.shortened(request.target, 100)
    if request.error_type is not None:
        record["error_type"] = request.error_type
    host: Any = None
    if ctx.protocol_version == MODERN:
        info = (ctx.meta or {}).get(CLIENT_INFO_META_KEY)
        if isinstance(info, dict) and isinstance(info.get("name"), str) and isinstance(info.get("version"), str):
            host = info["name"], info["version"]
    elif ctx.session.client_params is not None:
        host = ctx.session.client_params.client_info.name, ctx.session.client_params.client_info.version
    if host is not None:
        record["host_application"], record["host_version"] = shorten(host[0], 100), shorten(host[1], 100)
    if trace_id:
        record["trace_id"] = f"{trace_id:032x}"
    params = request.params
    sent = params.get("arguments") if takes_arguments else {k: v for k, v in params.items() if k != "_meta"}
    kind = request.policy.audit
    if sent and kind == "redacted":
        record["arguments"] = redactor.value(sent)
    elif sent and kind == "sha256":
        record["arguments_sha256"] = digest(sent)
    return record


SHORT = st.sampled_from(["", "a", "ä", "x" * 300, "\ud800"]) | TEXT
CALLERS = st.builds(
    Caller,
    id=st.sampled_from(["alice", "bob", "\udfff"]),
    subject=st.none() | SHORT,
    client=st.none() | SHORT,
    issuer=st.none() | SHORT,
    tier=st.none() | SHORT,
    tenant=st.none() | SHORT,
    claims=st.dictionaries(TEXT, NUMBER, max_size=1),
)
INFO = (
    st.none()
    | st.fixed_dictionaries({"name": SHORT, "version": SHORT | st.just("v" * 30_000)})
    | st.dictionaries(st.sampled_from(["name", "version"]), JSON)
)


@st.composite
def requests(draw: st.DrawFn) -> MCPRequest:
    version = draw(st.sampled_from([MODERN, LEGACY]))
    info, client_params = draw(INFO), None
    if version == LEGACY and draw(st.booleans()):
        application = Implementation(name=draw(SHORT), version=draw(SHORT))
        client_params = InitializeRequestParams(
            protocol_version=LEGACY, capabilities=ClientCapabilities(), client_info=application
        )
    named = st.dictionaries(st.sampled_from(["password", "text", "n"]), JSON, max_size=3)
    arguments = ["long" * 1000] * 5 if draw(st.booleans()) else draw(JSON | named)
    params = draw(
        st.just({"arguments": arguments}) | st.sampled_from([None, {}, {"uri": draw(TEXT), "_meta": {"a": 1}}])
    )
    meta: Any = draw(st.sampled_from([None, {CLIENT_INFO_META_KEY: info}]))
    peer = Request({"type": "http", "headers": [], "client": (draw(st.sampled_from(["127.0.0.1", "::1", "no"])), 1)})
    ctx: ServerRequestContext[Any, Any] = ServerRequestContext(
        session=session_of(client_params),
        lifespan_context=None,
        protocol_version=version,
        method="any",
        params=params,
        meta=meta,
        request=draw(st.sampled_from([None, peer])),
    )
    request = MCPRequest(
        draw(st.sampled_from(["tools/call", "prompts/get", "resources/read", "tools/list", "unknown"])),
        draw(SHORT),
        draw(st.sampled_from(["", "unknown", "echo"]) | TEXT),
        ctx,
        draw(CALLERS),
        draw(st.sampled_from(["0123456789abcdef", "fedcba9876543210"])),
        None,
        lambda ctx: pytest.fail("it has ended"),
        draw(st.sampled_from([Policy(audit="redacted"), Policy(audit="sha256"), Policy(audit="omit")])),
    )
    request.status = draw(st.sampled_from(["success", "input_required", "client_error", "rejected", "error"]))
    request.error_type = draw(st.none() | st.sampled_from(["ToolError", "AuditUnavailable"]) | TEXT)
    return request


@settings(max_examples=50)
@given(
    sent=st.lists(requests(), min_size=1, max_size=4),
    began=st.datetimes(timezones=st.just(UTC)) | st.just(datetime(2026, 11, 27, tzinfo=UTC)),
    took=st.integers(0, 10**14),
    trace_id=st.just(0) | st.integers(1, 2**128 - 1),
)
def test_a_line_is_what_its_record_is_field_by_field(
    sent: list[MCPRequest], began: datetime, took: int, trace_id: int
) -> None:
    audit = recorder()
    span = trace.NonRecordingSpan(trace.SpanContext(trace_id, 1, is_remote=False))
    with pytest.MonkeyPatch.context() as patch, trace.use_span(span) if trace_id else nullcontext():
        patch.setattr(audit_module, "perf_counter_ns", lambda: took)
        for request in sent * 2:  # the second time with what is kept of the first
            address = "stdio" if request.context.request is None else address_id(request.context.request.client.host)
            record = expected_record(request, address, began, took // 1000 / 1000, trace_id, audit._redactor)
            assert audit._line(request, began, 0) == encoded(record)


def test_callers_that_share_an_id_keep_their_own_fields() -> None:
    audit = recorder()
    callers = [Caller("alice", tenant="one"), Caller("alice", tenant="two"), Caller("alice", tier="gold")]
    ctx: ServerRequestContext[Any, Any] = ServerRequestContext(
        session=session_of(None),
        lifespan_context=None,
        protocol_version=LEGACY,
        method="ping",
    )
    for caller in callers * 2:
        request = MCPRequest("ping", "", "", ctx, caller, "0", None, lambda ctx: pytest.fail("it has ended"), Policy())
        line = json.loads(audit._line(request, datetime.now(UTC), 0))
        assert (line.get("tenant"), line.get("tier")) == (caller.tenant, caller.tier)


def test_what_is_kept_of_records_is_bounded() -> None:
    audit = recorder()
    for number in range(3 * audit_module.MAX_RECURRING):
        key = ("alice", f"address {number}", "host", "1", "tools/call", "echo", None, "success", None)
        audit._recurring_fields(key, Caller("alice"))
        assert len(audit._recurring) <= audit_module.MAX_RECURRING


@pytest.mark.needs("inbound.rate_limit")
def test_rejections_by_limits_are_recorded_without_sampling(audited: Start) -> None:
    settings = {"rate_limit_requests": 3, "rate_limit_window_seconds": 86_400, "rate_limit_messages": 1000}
    with audited(settings) as server:
        for _ in range(200):
            server.call("echo", text="x")
        records = server.records()
    expected = {("allowed", "success", None): 3, ("denied", "rejected", "RateLimited"): 197}
    assert Counter((r["decision"], r["outcome"], r.get("error_type")) for r in records) == expected


def test_a_cancelled_request_is_recorded(audited: Start) -> None:
    with audited({"tool_timeout_seconds": 0.2}) as server:
        server.call("slow")
        [record] = server.records()
    assert (record["outcome"], record["error_type"]) == ("error", "ToolTimeout")
    assert record["duration_ms"] >= 190


def test_http_rejections_are_recorded(audited: Start) -> None:
    with audited() as server:
        for _ in range(50):
            server.send("tools/call", {"name": "echo"}, origin="https://evil.example")
        server.send("ping", host="evil.example")
        server.running.client.post(server.running.url, content=b"{", headers={"content-type": "text/csv"})
        *origins, host = server.records()
    assert len(origins) == 50
    assert {(r["event"], r["decision"], r["outcome"], r["error_type"]) for r in origins} == {
        ("http", "denied", "rejected", "origin")
    }
    assert origins[0]["details"]["reason"] == "origin is not allowed"
    assert (host["error_type"], host["address"]) == ("host", "127.0.0.1")


@pytest.mark.needs("inbound.auth_token")
def test_callers_with_tokens_and_requests_without_are_recorded(audited: Start) -> None:
    tokens = {"auth_tokens": "alice:token-of-alice-0123456789"}
    with audited(tokens) as server:
        assert server.send("ping").status_code == 401
        assert server.send("ping", authorization="Bearer wrong-token-0123456789").status_code == 401
        server.send("ping", authorization="Bearer token-of-alice-0123456789")
        missing, wrong, alice = server.records()
    assert {(r["event"], r["error_type"], r["http_status"]) for r in (missing, wrong)} == {
        ("http", "unauthenticated", 401)
    }
    assert alice["client"] == "alice"
    assert alice["caller"] in ("alice", "token:alice")
    assert "token-of-alice" not in json.dumps([missing, wrong, alice])


def test_records_over_stdio_go_to_stderr() -> None:
    with stdio_process("test_audit:register", AUDIT_ARGUMENTS="redacted", LOG_LEVEL="CRITICAL") as process:
        process.send(INITIALIZE, message("tools/call", {"name": "echo", "arguments": {"text": "x"}}))
        assert [json.loads(process.receive())["id"] for _ in range(2)] == [0, 1]
        process.close_stdin()
        assert process.status() == 0
        lines = [json.loads(line) for line in process.log().splitlines() if line.startswith('{"audit"')]
    for line in lines:
        VALIDATOR.validate(line)
    assert [(line["method"], line["caller"]) for line in lines] == [("initialize", "stdio"), ("tools/call", "stdio")]
    assert lines[1]["arguments"] == {"text": "x"}
    assert lines[1]["host_application"] == "test"


# --- The file ------------------------------------------------------------------------------------------------


def test_a_full_file_is_renamed_and_no_record_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, max_bytes=1000, kept=3, durable=False)
    for number in range(100):
        sink.write(json.dumps({"n": number, "x": "x" * 50}).encode() + b"\n")
    sink.close()
    files = [path.with_name(f"audit.jsonl.{number}") for number in (3, 2, 1)] + [path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 1000 for file in files)
    numbers = [json.loads(line)["n"] for file in files for line in file.read_text().splitlines()]
    assert numbers == [*range(100 - len(numbers), 100)]
    assert len(numbers) > 40


def test_a_restart_continues_the_file_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')
    sink = FileSink(path, max_bytes=1000, kept=3, durable=False)
    sink.write(b'{"n": 2}\n')
    sink.close()
    assert path.read_bytes() == b'{"n": 1}\n{"n": \n{"n": 2}\n'


@posix
def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    FileSink(path, max_bytes=1000, kept=3, durable=False).write(b"{}\n")
    assert path.stat().st_mode & 0o777 == 0o600


@posix
def test_two_servers_do_not_share_a_file(audited: Start) -> None:
    with audited():
        server = create_server(config())

        async def start() -> None:
            async with server.running():
                pass

        with pytest.raises(ConfigError, match="AUDIT_FILE: cannot be written: another server writes to it"):
            asyncio.run(start())


@posix
def test_a_moved_file_is_created_again(audited: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_sinks, "CHECK_SECONDS", 0.0)
    with audited() as server:
        server.call("echo", text="1")
        moved = server.path.rename(server.path.with_name("moved"))
        server.call("echo", text="2")
        assert len(read(moved)) == 1
        assert len(server.records()) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sink": "file"}, "AUDIT_FILE: must be set"),
        ({"file": "x"}, "need AUDIT_SINK=file"),
        ({"fsync": "true"}, "need AUDIT_SINK=file"),
        ({"on_failure": "maybe"}, "AUDIT_ON_FAILURE: Input should be 'continue' or 'deny'"),
        ({"file_count": "0"}, "AUDIT_FILE_COUNT"),
    ],
)
def test_settings_that_contradict_each_other_stop_the_start(
    settings: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"AUDIT_{name.upper()}", value)
    with pytest.raises(ConfigError, match=problem):
        create_server(config())


async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_SINK", "file")
    monkeypatch.setenv("AUDIT_FILE", str(tmp_path / "missing" / "audit.jsonl"))
    with pytest.raises(ConfigError, match="AUDIT_FILE: cannot be written: No such file"):
        async with create_server(config()).running():
            pass


# --- Failures ------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`disk("full")` makes the disk of the audit file full, `disk("free")` gives it room."""
    monkeypatch.setattr(audit_sinks, "CHECK_SECONDS", 0.0)
    link = tmp_path / "link.jsonl"

    def become(state: str) -> Path:
        new = tmp_path / "new"
        new.symlink_to("/dev/full" if state == "full" else tmp_path / "real.jsonl")
        new.replace(link)
        return link

    return become


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_without_records_the_server_continues_and_counts(audited: Start, disk: Callable[[str], Path]) -> None:
    with audited(file=disk("free")) as server:
        assert server.dropped() in (0, None)
        server.call("echo", text="1")
        disk("full")
        for number in range(5):
            assert server.call("echo", text=f"lost {number}")["result"]["isError"] is False
        assert server.send("ping", origin="https://evil.example").status_code == 403
        assert server.dropped() in (6, None)
        disk("free")
        server.call("echo", text="2")
        first, gap, last = server.records()
    assert (gap["event"], gap["outcome"], gap["dropped"]) == ("audit", "resumed", 6)
    assert first["arguments_sha256"] == digest({"text": "1"})
    assert last["arguments_sha256"] == digest({"text": "2"})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_without_records_the_server_denies_where_that_is_set(
    audited: Start, disk: Callable[[str], Path], version: str
) -> None:
    with audited(file=disk("free"), on_failure="deny") as server:
        ran = []

        async def counted(text: str) -> str:
            ran.append(text)
            return "the result"

        server.running.server.add_tool(counted)
        assert "the result" in json.dumps(server.call("counted", version, text="1"))
        disk("full")
        withheld = server.call("counted", version, text="2")
        assert "its result is withheld" in json.dumps(withheld)
        assert "the result" not in json.dumps(withheld).replace("its result", "")
        for _ in range(3):
            rejected = server.call("counted", version, text="3")
            assert "was not executed, because its audit record cannot be written" in json.dumps(rejected)
        assert "error" in server.send("tools/list", {}, version).json()
        assert ran == ["1", "2"]
        disk("free")
        assert "the result" in json.dumps(server.call("counted", version, text="4"))
        assert ran == ["1", "2", "4"]
        first, gap, last = server.records()
    assert (first["outcome"], gap["dropped"], last["outcome"]) == ("success", 5, "success")


@posix
async def test_one_fsync_serves_all_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    release = threading.Event()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        assert release.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    sink = FileSink(tmp_path / "audit.jsonl", max_bytes=10_000, kept=1, durable=True)
    waiting = []
    for _ in range(32):
        sink.write(b'{"n": 1}\n')
        waiting.append(asyncio.create_task(sink.sync()))
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    release.set()
    await asyncio.gather(*waiting)
    assert len(synced) <= 2
    assert synced[-1] == 32 * 9


@posix
def test_a_disk_that_fails_to_keep_a_record_counts_as_a_failure(
    audited: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with audited(fsync="true", on_failure="deny") as server:
        assert server.call("echo", text="1")["result"]["isError"] is False
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            assert server.call("echo", text="2")["result"]["isError"] is True
        assert server.dropped() in (1, None)


@posix
def test_an_unread_stderr_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stderr = Stderr(writing)
    monkeypatch.setattr(audit_sinks, "STDERR", stderr)
    line = b"x" * 8000 + b"\n"

    def fill() -> None:
        for _ in range(10_000):
            StderrSink().write(line)

    with pytest.raises(OSError, match="stderr is not read"):
        fill()
    os.close(reading)
    assert stderr.flush(DEADLINE_SECONDS)
    with pytest.raises(OSError, match="stderr is not read"):
        StderrSink().write(b"{}\n")
