"""Static tokens: several, each with the name of its user, replaced without a restart."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from mcp.server.mcpserver import Context
from structlog.testing import capture_logs

from harness import (
    DEADLINE_SECONDS,
    HAS_METRICS,
    HEADERS,
    INITIALIZE,
    Running,
    Serve,
    config,
    http_process,
    message,
    modern,
    text_of,
    wait_for,
)
from weather_station.production.caller import caller
from weather_station.production.config import ANSWERS, ConfigError
from weather_station.production.inbound import auth_token
from weather_station.production.observe import throttle
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import drain
from weather_station.server import create_server

log = structlog.stdlib.get_logger(__name__)

ALICE, BOB = (hashlib.sha256(name).hexdigest() for name in (b"alice", b"bob"))


KIND = "" if ANSWERS["config"]["auth"] == "token" else "token:"
"""Prefix of the caller ids: beside other methods, a name is not the id of a subject of the same text."""


def add_who(server: ProductionServer) -> None:
    async def who(ctx: Context[Any, Any]) -> str:
        return caller(ctx).id.removeprefix(KIND)

    async def attributes(ctx: Context[Any, Any]) -> dict[str, Any]:
        sender = caller(ctx)
        return {"id": sender.id, "scopes": sorted(sender.scopes), "tier": sender.tier, "tenant": sender.tenant}

    server.tool()(who)
    server.tool()(attributes)


def status(server: Running, token: str) -> int:
    return server.post(server.request("health_check"), authorization=f"Bearer {token}").status_code


def write(path: Path, *tokens: str) -> None:
    """Replace the file in one step."""
    new = path.with_suffix(".new")
    new.write_text("# clients\n\n" + "".join(f"client{number}: {token}\n" for number, token in enumerate(tokens)))
    new.replace(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file often."""
    monkeypatch.setattr(auth_token, "CHECK_SECONDS", 0.02)


def test_each_token_stands_for_its_user_and_no_other_text_is_accepted(serve: Serve) -> None:
    with serve(add_who, auth_tokens=f"alice:{ALICE}, bob:{BOB},") as server:
        assert text_of(server.call("who", authorization=f"Bearer {ALICE}")) == "alice"
        assert text_of(server.call("who", authorization=f"Bearer {BOB}")) == "bob"
        for wrong in (ALICE[:-1], ALICE + "0", ALICE.upper(), BOB[::-1], f"alice:{ALICE}", "alice"):
            assert status(server, wrong) == 401
        assert server.post(server.request("who")).status_code == 401


@pytest.mark.needs("observe.logging")
def test_the_tokens_of_a_file_are_never_logged(
    serve: Serve, capfd: pytest.CaptureFixture[str], tmp_path: Path, quick: None
) -> None:
    write(tmp_path / "tokens", ALICE)
    with serve(auth_tokens_file=tmp_path / "tokens") as server:
        write(tmp_path / "tokens", ALICE, BOB)
        wait_for(lambda: status(server, BOB) == 200)
        log.warning(f"the callers came with {ALICE} and x{BOB}x")
    output = capfd.readouterr().err
    assert "the callers came" in output
    assert ALICE not in output
    assert BOB not in output


def test_a_user_may_have_an_old_and_a_new_token(serve: Serve) -> None:
    with serve(add_who, auth_tokens=f"alice:{ALICE},alice:{BOB}") as server:
        for token in (ALICE, BOB):
            assert text_of(server.call("who", authorization=f"Bearer {token}")) == "alice"


def test_health_reports_that_tokens_are_configured_and_shows_none(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)
    for variable, value in (("AUTH_TOKENS", f"a:{ALICE}"), ("AUTH_TOKENS_FILE", file)):
        with serve(**{variable.lower(): value}) as server:
            health = server.get("/health")
            assert health.json()["auth_config"][variable] == "configured"
            assert ALICE not in health.text


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (f"alice:{ALICE},{BOB}", "entry 2: is not name:token"),
        (f"alice:{ALICE},bob:", "entry 2: is not name:token"),
        (f":{ALICE}", "entry 1: the name must have"),
        (f"{ALICE}{ALICE}:alice", "entry 1: the name must have"),
        (f"{ALICE}:alice", "entry 1: the token must have at least 16 random characters"),
        (f"bob smith:{BOB}", "entry 1: the name must have"),
        (f"10.0.0.1:{BOB}", "entry 1: the name is reserved"),
        (f"stdio:{BOB}", "entry 1: the name is reserved"),
        ("bob:fifteen-letters", "entry 1: the token must have at least 16 random characters"),
        ("bob:has a space inside it", "entry 1: attributes are for AUTH_TOKENS_FILE only"),
        (f"bob:{BOB} scopes=a", "entry 1: attributes are for AUTH_TOKENS_FILE only"),
        ("bob:übermäßig-geheimes-wort", "entry 1: the token may have"),
        (f"alice:{ALICE},bob:{ALICE}", "entry 2: the token occurs twice"),
        (",", "contains no token"),
    ],
)
def test_a_broken_list_stops_the_start_with_a_message_that_shows_no_part_of_it(entries: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(auth_tokens=entries))
    assert f"AUTH_TOKENS: {problem}" in str(caught.value)
    for secret in (ALICE, BOB, "fifteen-letters", "has a space", "übermäßig"):
        assert secret not in str(caught.value)


def test_an_unusable_file_stops_the_start(tmp_path: Path) -> None:
    missing, broken, binary = tmp_path / "missing", tmp_path / "broken", tmp_path / "binary"
    broken.write_text(f"# clients\n\nalice:{ALICE}\nbob {BOB}\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for file, problem in (
        (missing, "cannot be read: No such file"),
        (tmp_path, "cannot be read: "),
        (broken, "line 4: is not name:token"),
        (binary, "is not UTF-8 text"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            create_server(config(auth_tokens_file=file))
        assert str(caught.value).startswith("AUTH_TOKENS_FILE: ")
        assert BOB not in str(caught.value)


def test_attributes_behind_a_token_are_those_of_its_caller(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice: {ALICE}  scopes=orders:read,=x\ttier=internal tenant=acme\nbob:{BOB}\n")
    with serve(add_who, auth_tokens_file=file) as server:
        found = server.call("attributes", authorization=f"Bearer {ALICE}")["structuredContent"]
        scopes = ["=x", "orders:read"]
        assert found == {"id": f"{KIND}alice", "scopes": scopes, "tier": "internal", "tenant": "acme"}
        found = server.call("attributes", authorization=f"Bearer {BOB}")["structuredContent"]
        assert found == {"id": f"{KIND}bob", "scopes": [], "tier": None, "tenant": None}


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ("scopes=", "only scopes=a,b"),
        ("scopes=a,,b", "only scopes=a,b"),
        ('scopes=a"b', "only scopes=a,b"),
        ("tier=a,b", "only scopes=a,b"),
        ("tier", "only scopes=a,b"),
        ("Tier=a", "only scopes=a,b"),
        ("limit=5", "only scopes=a,b"),
        ("tier=a tier=b", "an attribute occurs twice"),
        (f"scopes=a {BOB}", "only scopes=a,b"),
    ],
)
def test_a_wrong_attribute_stops_the_start_with_its_line(tmp_path: Path, attributes: str, problem: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# clients\nalice:{ALICE} {attributes}\n")
    with pytest.raises(ConfigError) as caught:
        create_server(config(auth_tokens_file=file))
    assert str(caught.value).startswith("AUTH_TOKENS_FILE: line 2: ")
    assert problem in str(caught.value)
    assert ALICE not in str(caught.value)
    assert BOB not in str(caught.value)


def test_two_sources_of_tokens_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)
    with pytest.raises(ConfigError, match="both set"):
        create_server(config(auth_tokens=f"alice:{ALICE}", auth_tokens_file=file))


def test_stdio_needs_no_tokens(tmp_path: Path) -> None:
    create_server(config(transport="stdio", auth_tokens_file=tmp_path / "missing"))


@pytest.mark.usefixtures("quick")
def test_a_replaced_file_takes_effect_without_a_restart(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)
    with serve(auth_tokens_file=file) as server:
        assert (status(server, ALICE), status(server, BOB)) == (200, 401)
        write(file, ALICE, BOB)
        wait_for(lambda: status(server, BOB) == 200)
        assert status(server, ALICE) == 200
        write(file, BOB)
        wait_for(lambda: status(server, ALICE) == 401)
        assert status(server, BOB) == 200


@pytest.mark.usefixtures("quick")
def test_a_file_changed_in_place_with_the_same_size_and_time_takes_effect(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"a:{ALICE}\n")
    times = file.stat()
    with serve(auth_tokens_file=file) as server:
        file.write_text(f"a:{BOB}\n")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        wait_for(lambda: status(server, BOB) == 200)
        assert status(server, ALICE) == 401


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
@pytest.mark.usefixtures("quick")
def test_a_symbolic_link_that_kubernetes_swaps_takes_effect(serve: Serve, tmp_path: Path) -> None:
    for version, token in (("..1", ALICE), ("..2", BOB)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens").write_text(f"a:{token}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens").symlink_to("..data/tokens")
    with serve(auth_tokens_file=tmp_path / "tokens") as server:
        assert status(server, ALICE) == 200
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        wait_for(lambda: status(server, BOB) == 200)
        assert status(server, ALICE) == 401


@pytest.mark.usefixtures("quick")
def test_a_broken_or_missing_file_leaves_the_tokens_and_is_logged_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)
    reads = 0
    read: Callable[[Any], str] = auth_token.TokenFile._read

    def counted(self: auth_token.TokenFile) -> str:
        nonlocal reads
        reads += 1
        return read(self)

    monkeypatch.setattr(auth_token.TokenFile, "_read", counted)

    def wait_for_reads() -> None:
        before = reads
        wait_for(lambda: reads > before + 3)

    with serve(auth_tokens_file=file) as server, capture_logs() as log:
        file.unlink()
        wait_for_reads()
        assert status(server, ALICE) == 200
        file.write_text(f"bob {BOB}")
        wait_for_reads()
        assert (status(server, ALICE), status(server, BOB)) == (200, 401)
        file.write_text("")
        wait_for_reads()
        assert status(server, ALICE) == 200
        write(file, BOB)
        wait_for(lambda: status(server, BOB) == 200)
        wait_for_reads()
    assert [entry["event"] for entry in log].count("tokens reloaded") == 1
    problems = [entry["problem"] for entry in log if "problem" in entry]
    seen = [problem for problem in problems if "contains no token" not in problem]  # the file is empty while written
    assert len(seen) == 2
    assert "cannot be read" in seen[0]
    assert "line 1" in seen[1]
    assert BOB not in str(log)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [None, "", "# none\n", "half", f"a:{BOB[:20]}", f"a:{BOB}"])
def test_a_file_that_is_not_in_effect_degrades_the_server(content: str | None, serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)

    def state(server: Running) -> tuple[list[str], float | None]:
        return server.get("/health").json()["problems"], server.metrics().value("mcp_auth_tokens_stale")

    with serve(auth_tokens_file=file) as server:
        assert state(server) == ([], 0 if HAS_METRICS else None)
        if content is None:
            file.unlink()
        else:
            replace(file, content)
        wait_for(lambda: state(server) == (["auth_tokens_file"], 1 if HAS_METRICS else None))
        assert (status(server, ALICE), status(server, BOB), status(server, BOB[:20])) == (200, 401, 401)
        replace(file, f"a:{BOB}\n")
        wait_for(lambda: state(server) == ([], 0 if HAS_METRICS else None))
        assert (status(server, ALICE), status(server, BOB)) == (401, 200)


@pytest.mark.usefixtures("quick")
def test_valid_lines_take_effect_beside_another_one_that_is_not(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    replace(file, f"alice:{ALICE}\nbob:{BOB}\n")
    with serve(auth_tokens_file=file) as server:
        replace(file, f"bob:{BOB}\nnobody\n")
        wait_for(lambda: status(server, ALICE) == 401)
        assert status(server, BOB) == 200
        assert server.get("/health").json()["problems"] == ["auth_tokens_file"]
        replace(file, f"alice:{ALICE}\nbob:{BOB}")  # a last line that is known needs no line break
        wait_for(lambda: status(server, ALICE) == 200)
        assert status(server, BOB) == 200
        assert server.get("/health").json()["problems"] == []


@pytest.mark.usefixtures("quick")
def test_attributes_in_a_last_line_that_may_be_incomplete_change_nothing(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    replace(file, f"alice:{ALICE} scopes=read tier=internal\n")

    def scopes(server: Running) -> Any:
        return server.call("attributes", authorization=f"Bearer {ALICE}")["structuredContent"]["scopes"]

    with serve(add_who, auth_tokens_file=file) as server:
        for line in (f"alice:{ALICE}", f"alice:{ALICE} scopes=read,write", f"alice:{ALICE} scopes=read tier=int"):
            replace(file, line)
            wait_for(lambda: server.get("/health").json()["problems"] == ["auth_tokens_file"])
            assert scopes(server) == ["read"]
            replace(file, f"alice:{ALICE} scopes=read tier=internal")
            wait_for(lambda: server.get("/health").json()["problems"] == [])
        replace(file, f"alice:{ALICE} scopes=read,write\n")
        wait_for(lambda: scopes(server) == ["read", "write"])


def replace(file: Path, content: str) -> None:
    """Replace a file in one step, so that the server never reads half of it."""
    new = file.with_suffix(".new")
    new.write_text(content)
    new.replace(file)


def check_hourly(server: ProductionServer) -> None:
    """Look at the file once an hour, so that only the signal makes a change take effect."""
    auth_token.CHECK_SECONDS = 3600.0
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the server leaves it so


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_sighup_reloads_the_file_and_does_not_end_the_process(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, ALICE)
    with (
        http_process(f"{__name__}:check_hourly", AUTH_TOKENS_FILE=file) as server,
        httpx2.Client(trust_env=False) as client,
    ):

        def status_of(token: str) -> int:
            headers = HEADERS | {"authorization": f"Bearer {token}"}
            return client.post(server.url, json=message("tools/list"), headers=headers).status_code

        assert status_of(ALICE) == 200
        write(file, BOB)
        assert (status_of(ALICE), status_of(BOB)) == (200, 401)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: status_of(BOB) == 200)
        assert status_of(ALICE) == 401
        server.signal()
        assert server.status() == 0


def test_many_wrong_tokens_are_logged_once_in_an_interval(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "LOG_INTERVAL_SECONDS", 3600.0)
    with serve(auth_tokens=f"alice:{ALICE}") as server, capture_logs() as log:
        for number in range(300):
            assert status(server, f"{number:064d}") == 401
        assert status(server, ALICE) == 200
    rejected = [entry for entry in log if entry.get("http_status") == 401]
    assert len(rejected) == 1
    assert f"{0:064d}" not in str(log)


# --- Open streams ---------------------------------------------------------------------------------------------------


def read_to_the_end(server: Running, token: str, mode: str, opened: threading.Event) -> list[str]:
    """Open a stream and return its lines when it has ended."""
    client, bearer = server.client, {"authorization": f"Bearer {token}"}
    if mode == "stateful":
        response = client.post(server.url, json=INITIALIZE, headers=HEADERS | bearer)
        session = {"mcp-session-id": response.headers["mcp-session-id"]}
        opening: Any = client.stream("GET", server.url, headers=HEADERS | bearer | session)
    else:
        message, own = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        opening = client.stream("POST", server.url, json=message, headers=own | bearer)
    with opening as stream:
        assert stream.status_code == 200
        opened.set()
        return [*stream.iter_lines()]


@pytest.mark.parametrize("mode", ["stateless", "stateful"])
def test_the_stream_of_a_caller_whose_token_was_removed_ends(
    mode: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drain, "RECHECK_SECONDS", 0.1)
    file = tmp_path / "tokens"
    file.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    with serve(auth_tokens_file=file, session_mode=mode) as server:
        streams = {}
        for name, token in (("alice", ALICE), ("bob", BOB)):
            opened = threading.Event()
            streams[name] = threading.Thread(target=read_to_the_end, args=(server, token, mode, opened))
            streams[name].start()
            assert opened.wait(DEADLINE_SECONDS)
        file.write_text(f"bob:{BOB}\n")
        streams["alice"].join(DEADLINE_SECONDS)
        assert not streams["alice"].is_alive()
        assert streams["bob"].is_alive()
        file.write_text(f"carol:{'c' * 32}\n")
        streams["bob"].join(DEADLINE_SECONDS)
        assert not streams["bob"].is_alive()
        assert "without completing" not in capfd.readouterr().err
