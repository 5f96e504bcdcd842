"""Redis as it is run: TLS and ACL users, Sentinel, and a cluster, each with a failover under load.

Debian's packages `redis-server` and `redis-sentinel` have the programs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .live_servers import LOCAL, Project, Server, accepts, free_port, make_project, post, process, tool_call
from .live_servers import status as status_of
from .ops import passes
from .support import run, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.release]

USER, PASSWORD = "app", "p@ss/w:rd?#[50%"
LIMIT = 20
TOKENS = {name: f"token-of-{name}-0123456789" for name in ("first", "second", "third", "load")}

TOOL = '''\
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

from ..production import once


async def use(key: str, ctx: Context) -> bool:
    """Return whether a key is new."""
    return await once(ctx, key)


def register(server: MCPServer[Any]) -> None:
    server.tool()(use)
'''


@dataclass
class Nodes:
    """Redis servers of the test."""

    directory: Path
    stack: contextlib.ExitStack
    options: tuple[str, ...] = ()
    """Of each server."""
    client: tuple[str, ...] = ()
    """Options of redis-cli."""
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """The process of each port."""
    url: str = ""

    def start(self, *options: str, configuration: str = "", program: str = "redis-server") -> int:
        path = shutil.which(program)
        assert path, f"{program} is missing: apt-get install redis-server redis-sentinel"
        port = free_port()
        own = self.directory / str(port)
        own.mkdir()
        (own / "redis.conf").write_text(configuration, "utf-8")
        port_option = ("--tls-port", str(port), "--port", "0") if "--tls" in self.client else ("--port", str(port))
        common = ("--bind", LOCAL, "--dir", str(own), *(("--save", "") if program == "redis-server" else ()))
        command = [path, own / "redis.conf", *port_option, *common, *options]
        command += self.options if program == "redis-server" else ()
        self.running[port] = self.stack.enter_context(process(command, own / "log", own))
        wait_for(lambda: accepts(port), (own / "log").read_text)
        return port

    def ask(self, port: int, *command: str) -> str:
        return passes("redis-cli", "-h", LOCAL, "-p", str(port), *self.client, *command, cwd=self.directory).strip()

    def replication(self, port: int) -> str:
        """Return what a server says of its replication; nothing while it changes, and closes its connections."""
        command = ("redis-cli", "-h", LOCAL, "-p", str(port), *self.client, "info", "replication")
        return run(*command, cwd=self.directory).stdout

    def kill(self, port: int) -> None:
        self.running[port].kill()
        self.running[port].wait()

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in self.directory.glob("*/log"))


def with_user() -> str:
    """Return configuration with an ACL user, and without the default one."""
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    return f'user default off\nuser {USER} on ">{quoted}" ~* &* +@all\nmasteruser {USER}\nmasterauth "{quoted}"\n'


def sentinel(nodes: Nodes) -> tuple[int, ...]:
    """Start a master and a replica with an ACL user, and three Sentinels. Return the port of the master."""
    nodes.client = ("--user", USER, "-a", PASSWORD, "--no-auth-warning")
    master = nodes.start(configuration=with_user())
    replica = nodes.start("--replicaof", LOCAL, str(master), configuration=with_user())
    wait_for(lambda: "master_link_status:up" in nodes.ask(replica, "info", "replication"), nodes.logs)
    watched = (
        f"sentinel monitor main {LOCAL} {master} 2\nsentinel auth-user main {USER}\n"
        f'sentinel auth-pass main "{PASSWORD}"\nsentinel down-after-milliseconds main 700\n'
        "sentinel failover-timeout main 3000\n"
    )
    ports = [nodes.start(configuration=watched, program="redis-sentinel") for _ in range(3)]
    anonymous = nodes.client
    nodes.client = ()
    for port in ports:
        wait_for(lambda port=port: "slaves=1,sentinels=3" in nodes.ask(port, "info", "sentinel"), nodes.logs)  # type: ignore[misc]
    nodes.client = anonymous
    gone = free_port()  # one of them is not there
    hosts = ",".join(f"{LOCAL}:{port}" for port in (gone, *ports))
    nodes.url = f"redis+sentinel://{USER}:{PASSWORD}@{hosts}/main/0"
    return (master,)


def cluster(nodes: Nodes) -> tuple[int, ...]:
    """Start a cluster of three masters with a replica each. Return the ports of the masters."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    nodes.client = ("-a", PASSWORD, "--no-auth-warning")
    secret = f'requirepass "{PASSWORD}"\nmasterauth "{PASSWORD}"\n'
    ports = [nodes.start(*options, "--cluster-port", str(free_port()), configuration=secret) for _ in range(6)]
    addresses = [f"{LOCAL}:{port}" for port in ports]
    create = ("--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes")
    passes("redis-cli", *nodes.client, *create, cwd=nodes.directory)
    for port in ports:
        wait_for(lambda port=port: "cluster_state:ok" in nodes.ask(port, "cluster", "info"), nodes.logs)  # type: ignore[misc]
    nodes.url = f"redis+cluster://:{PASSWORD}@{addresses[0]},{addresses[1]},{addresses[5]}"
    return tuple(ports)


SETUPS = {"sentinel": sentinel, "cluster": cluster}


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(template, tmp_path_factory.mktemp("redis") / "project")
    (made.directory / "src/weather_station/tools/use.py").write_text(TOOL, "utf-8")
    return made


@dataclass
class Replicas:
    """Two replicas that share a Redis."""

    servers: tuple[Server, Server]

    def call(self, caller: str, number: int, tool: str = "use", **arguments: object) -> tuple[str, bool]:
        """Call a tool of a replica, and return its text and whether it is a failure."""
        message = tool_call(tool, {"key": "any"} | arguments)
        _, body = post(self.servers[number].port, message, authorization=f"Bearer {TOKENS[caller]}")
        texts = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith(("data: {", "{"))]
        result = json.loads(texts[-1])["result"]
        return result["content"][0]["text"], bool(result.get("isError"))

    def admitted(self, caller: str) -> int:
        """Return how many of more calls than are permitted are admitted, over both replicas."""
        found = [self.call(caller, number % 2) for number in range(LIMIT + 10)]
        assert all(not failed or text.startswith("Rate limit exceeded.") for text, failed in found), found
        return sum(not failed for _, failed in found)

    def ready(self) -> bool:
        return [status_of(server.port, "/readyz") for server in self.servers] == [200, 200]


@contextlib.contextmanager
def replicas(project: Project, url: str, directory: Path, **settings: object) -> Iterator[Replicas]:
    tokens = directory / "tokens"
    lines = [f"{name}:{token} tier={'load' if name == 'load' else 'none'}\n" for name, token in TOKENS.items()]
    tokens.write_text("".join(lines), "utf-8")
    chosen = settings | {
        "AUTH_TOKENS": "",
        "AUTH_TOKENS_FILE": tokens,
        "REDIS_URL": url,
        "RATE_LIMIT_REQUESTS": LIMIT,
        "RATE_LIMIT_WINDOW": 86_400,
        "RATE_LIMIT_TIERS": "load=1000000/1",
        "OTEL_SDK_DISABLED": "true",
    }
    with (
        project.serving(directory / "first.log", **chosen) as first,
        project.serving(directory / "second.log", **chosen) as second,
    ):
        yield Replicas((first, second))


@pytest.mark.parametrize("setup", [*SETUPS])
def test_a_failover_under_load(project: Project, tmp_path: Path, setup: str) -> None:
    """Exact before and after it, with used keys kept; calls are rejected in between, as the policy says."""
    with contextlib.ExitStack() as stack:
        nodes = Nodes(tmp_path, stack)
        masters = SETUPS[setup](nodes)
        shared = stack.enter_context(replicas(project, nodes.url, tmp_path, RATE_LIMIT_ON_STORE_FAILURE="closed"))
        assert shared.admitted("first") == LIMIT
        assert shared.call("load", 0, key="a refund") == ("true", False)
        (holder,) = holding(nodes, masters)
        wait_for(lambda: replicated(nodes, holder), nodes.logs)

        outcomes: list[tuple[str, bool]] = []
        stopped = threading.Event()

        def load() -> None:
            while not stopped.is_set():
                outcomes.append(shared.call("load", len(outcomes) % 2, "health_check"))

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        wait_for(lambda: len(outcomes) > 20, nodes.logs)
        assert not any(failed for _, failed in outcomes)
        nodes.kill(holder)
        wait_for(lambda: outcomes[-1][1], nodes.logs)
        wait_for(lambda: not shared.ready(), nodes.logs)
        wait_for(shared.ready, nodes.logs, seconds=120)
        wait_for(lambda: not any(failed for _, failed in outcomes[-20:]), nodes.logs)
        stopped.set()
        thread.join()

        assert shared.admitted("first") == 0, "the new master knows what was spent"
        assert shared.admitted("second") == LIMIT
        for number in (0, 1):
            assert shared.call("load", number, key="a refund") == ("false", False)
            assert shared.call("load", number, key=f"another {number}") == ("true", False)
        log = "".join(server.log() for server in shared.servers)
        assert "redis does not answer: the rate limits are not shared" in log
        assert "redis answers again" in log
        assert PASSWORD not in log
        assert "Traceback" not in log


def holding(nodes: Nodes, ports: tuple[int, ...]) -> list[int]:
    """Return the ports of the masters that have keys."""
    return [
        port
        for port in ports
        if nodes.ask(port, "dbsize") != "0" and "role:master" in nodes.ask(port, "info", "replication")
    ]


def replicated(nodes: Nodes, port: int) -> bool:
    return nodes.ask(port, "wait", "1", "1000") == "1"


def test_a_switchover_moves_all_connections(project: Project, tmp_path: Path) -> None:
    """The old master lives on as a replica, so its connections stay open, and every command is answered READONLY."""
    with contextlib.ExitStack() as stack:
        nodes = Nodes(tmp_path, stack)
        (master,) = sentinel(nodes)
        shared = stack.enter_context(replicas(project, nodes.url, tmp_path))
        assert shared.admitted("first") == LIMIT
        wait_for(lambda: replicated(nodes, master), nodes.logs)
        port = int(nodes.url.rpartition("/main")[0].rpartition(":")[2])
        user, nodes.client = nodes.client, ()
        nodes.ask(port, "sentinel", "failover", "main")
        nodes.client = user
        wait_for(lambda: "role:slave" in nodes.replication(master), nodes.logs)
        for number in (0, 1):
            wait_for(lambda number=number: not shared.call("load", number, key=f"key {number}")[1], nodes.logs)  # type: ignore[misc]
        wait_for(lambda: shared.admitted("first") == 0, nodes.logs)


def test_tls_and_an_acl_user(project: Project, tmp_path: Path) -> None:
    """The user may do only what the page says."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1")
    names = ("-addext", f"subjectAltName=IP:{LOCAL}", "-keyout", key, "-out", certificate)
    made = run("openssl", "req", *options, *names, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    page = (project.directory / "docs/redis_connections.md").read_text("utf-8")
    (rule,) = (line for line in page.splitlines() if line.startswith("user "))
    rule = rule.replace("user orders", f"user {USER}").replace("{orders}", "{weather-station}")
    rule = rule.replace(">password", f'">{PASSWORD}"')
    with contextlib.ExitStack() as stack:
        files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate)
        tls = (*(str(option) for option in files), "--tls-auth-clients", "no")
        nodes = Nodes(tmp_path, stack, tls, ("--tls", "--cacert", str(certificate)))
        port = nodes.start(configuration=f"user default off\n{rule}\n")
        url = f"rediss://{USER}:{PASSWORD}@{LOCAL}:{port}/0?ssl_ca_certs={certificate}"
        with replicas(project, url, tmp_path) as shared:
            assert shared.admitted("first") == LIMIT
            assert shared.call("load", 0, key="a refund") == ("true", False)
            assert shared.call("load", 1, key="a refund") == ("false", False)
            assert shared.ready()
            log = "".join(server.log() for server in shared.servers)
            assert "redis does not answer" not in log
            assert "NOPERM" not in log
        with replicas(project, url[: url.rindex("?")], tmp_path) as shared:
            assert not shared.call("first", 0, "health_check")[1], "it does not trust this Redis: limits are local"
            assert "CERTIFICATE_VERIFY_FAILED" in shared.servers[0].log()
