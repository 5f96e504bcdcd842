"""What READMEs and docs/ say is so: their commands run in order, their JSON parses, their links lead somewhere.

The line above a shell block says how it runs:

- `<!-- not run: reason -->` does not.
- `<!-- serves -->` runs until the blocks after it, up to the next heading, are done.
- `<!-- checkout -->` runs in a checkout of this repository.
- `<!-- at the start -->` runs where the first block began.
- `<!-- committed -->` runs in a project that is committed.

What stands in another fence, such as console, is not run. The URL in README stands for this repository: git fetches a
copy of it instead (`insteadOf`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import unquote
from urllib.request import urlopen

import pytest

from . import tables
from .conftest import Rendering
from .live_servers import free_port
from .matrix import Project
from .support import (
    ANSWERS_FILE,
    DEADLINE_SECONDS,
    DOCUMENTATION,
    ROOT,
    clean_environment,
    copy_template,
    files,
    path_with_uv,
    questions,
    run,
    uv,
    wait_for,
)
from .template_repository import commit, git

README = ROOT / "README.md"
MOST_LINES = 150
"""The length of README.md. The rest is in docs/."""
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIANTS = ("default", "minimal", "everything")
ADDRESS = "127.0.0.1:8000"
MARKS = ("serves", "checkout", "at the start", "committed")
OF_THE_HOST = "../../actions/"
"""A link to a page of the place that shows README.md, and no file of this repository."""
DOCUMENT = ROOT / "packages" / "openapi-tools" / "tests" / "documents" / "plain.yaml"
"""What `petstore.yaml` in the documentation stands for."""

TEST_COMMAND = "python3 with_uv.py run pytest\n"
"""What README says to run, and .ci/run runs: it is what runs this."""

RUN_BY_TEST_PROJECTS = ("uv run pytest", "uv run ruff check . && uv run ruff format --check . && uv run mypy")
"""Lines of the generated README that `test_projects.py` runs in each project."""


class Block(NamedTuple):
    language: str
    body: str
    mark: str
    section: str
    """The heading above it."""


def blocks(text: str, language: str) -> list[Block]:
    headings = [(match.start(), match[1]) for match in re.finditer(r"^##+ (.*)$", text, re.MULTILINE)]
    return [
        Block(
            language,
            match["body"],
            match["mark"] or "",
            next((name for start, name in reversed(headings) if start < match.start()), ""),
        )
        for match in BLOCK.finditer(text)
        if match["language"] == language
    ]


# --- Commands --------------------------------------------------------------------------------------------------------


@dataclass
class Shell:
    """Runs blocks one after the other as a person types them: a change of directory stays."""

    directory: Path
    environment: dict[str, str]
    port: int
    checkout: Path | None = None

    def __post_init__(self) -> None:
        self.start = self.directory

    def run(self, body: str) -> str:
        """Runs a block and returns what it printed; any command of it that fails fails the test."""
        read_end, write_end = os.pipe()
        with open(read_end, encoding="utf-8") as pipe:
            place = f'printf "%s\\n" "$PWD" "${{TEMPLATE-}}" >&{write_end}'
            script = f"{body.replace(ADDRESS, f'127.0.0.1:{self.port}')}\n{place}\n"
            done = subprocess.run(
                ["bash", "-euc", script],  # noqa: S607 (the shell on PATH)
                cwd=self.directory,
                env=self.environment,
                pass_fds=[write_end],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE_SECONDS,
                check=False,
            )
            os.close(write_end)
            assert done.returncode == 0, f"{body}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            directory, self.environment["TEMPLATE"] = pipe.read().splitlines()
            self.directory = Path(directory)
        return done.stdout

    def run_marked(self, block: Block) -> str:
        """Run a block where its mark says."""
        if block.mark == "checkout":
            assert self.checkout
            return Shell(self.checkout, self.environment, self.port).run(block.body)
        if block.mark == "at the start":
            return Shell(self.start, self.environment, self.port).run(block.body)
        if block.mark == "committed":
            assert self.checkout
            commit(self.checkout, "a newer version")
            git("init", "--quiet", cwd=self.directory)
            commit(self.directory, "before the update")
        return self.run(block.body)

    @contextmanager
    def serving(self, body: str) -> Iterator[None]:
        """Runs a block that serves until this ends; SIGINT, as Ctrl-C sends it, has to end it with status 0."""
        *before, serve = body.strip().splitlines()
        if before:
            self.run("\n".join(before))
        started = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"],  # noqa: S607 (the shell on PATH)
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until_it_serves(f"http://127.0.0.1:{self.port}/livez", started)
            yield
            started.send_signal(signal.SIGINT)
            _, log = started.communicate(timeout=60)
            assert started.returncode == 0, log
        finally:
            started.kill()
            started.wait()


def wait_until_it_serves(url: str, started: subprocess.Popen[str]) -> None:
    def serves() -> bool:
        assert started.poll() is None, started.communicate()[1]
        try:
            with urlopen(url, timeout=5):  # noqa: S310 (the server of this test)
                return True
        except (URLError, ConnectionError):
            return False

    wait_for(serves, lambda: f"{url} does not answer")


def run_in_order(shell: Shell, ahead: list[Block]) -> list[str]:
    """Runs the blocks that run; returns what each of them printed."""
    output: list[str] = []
    ahead = [block for block in ahead if not block.mark.startswith("not run: ")]
    while ahead:
        block = ahead.pop(0)
        if block.mark != "serves":
            output.append(shell.run_marked(block))
            continue
        with shell.serving(block.body):
            while ahead and ahead[0].section == block.section:
                output.append(shell.run(ahead.pop(0).body))
    return output


def clean(home: Path, port: int, **settings: str) -> dict[str, str]:
    """An environment with an empty home. It shares uv's cache, so that nothing is fetched twice."""
    cache = run(uv(), "cache", "dir", cwd=home.parent).stdout.strip()
    home.mkdir()
    inherited = {name: value for name, value in clean_environment().items() if not name.startswith(("GIT_", "XDG_"))}
    return inherited | {"HOME": str(home), "PATH": path_with_uv(), "UV_CACHE_DIR": cache, "PORT": str(port)} | settings


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A reader with an empty home, in a folder with an OpenAPI document; the URL of README is that of a checkout."""
    checkout, folder, port = tmp_path / "checkout", tmp_path / "folder", free_port()
    checkout.mkdir()
    copy_template(checkout)
    shutil.copy(ROOT / "with_uv.py", checkout)
    git("init", "--quiet", cwd=checkout)
    commit(checkout)
    for place in (checkout, folder):
        place.mkdir(exist_ok=True)
        shutil.copy(DOCUMENT, place / "petstore.yaml")
    (url,) = re.findall(r"^TEMPLATE=(\S+)", README.read_text("utf-8"), re.MULTILINE)
    instead = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{checkout}.insteadOf", "GIT_CONFIG_VALUE_0": url}
    return Shell(folder, clean(tmp_path / "home", port, MCP_TEMPLATE_STRICT="1", **instead), port, checkout)


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_the_first_commands_of_the_readme_work_in_order(shell: Shell) -> None:
    output = run_in_order(
        shell, [block for block in blocks(README.read_text("utf-8"), "sh") if block.section == "Start"]
    )
    call, metric = output[-1].splitlines()
    (content,) = json.loads(call)["result"]["content"]
    assert json.loads(content["text"])["status"] in ("healthy", "degraded")
    assert metric == 'mcp_tool_calls_total{status="success",tool_name="health_check"} 1.0'
    assert (shell.start / "my-server" / "uv.lock").exists()


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_every_command_of_the_documentation_works_in_order(shell: Shell) -> None:
    """README from the beginning to the end, then each page of docs/ in a reader's folder with README's project."""
    assert shell.checkout
    for page in DOCUMENTATION:
        shutil.rmtree(shell.start / "petstore", ignore_errors=True)
        run_in_order(shell, [block for block in blocks(page.read_text("utf-8"), "sh") if block.body != TEST_COMMAND])
    recorded = (shell.start / "my-server" / ANSWERS_FILE).read_text("utf-8")
    assert git("rev-parse", "--short", "HEAD", cwd=shell.checkout).strip() in recorded
    assert list((shell.checkout.parent / "my-server").glob("src/*/tools/pets.py"))


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_the_commands_of_a_generated_readme_work_in_order(built: Callable[[str], Project], tmp_path: Path) -> None:
    """In the default project, whose upstream is a stand-in: `--check` asks it."""
    project, port = built("default").path, free_port()
    text = (project / "README.md").read_text("utf-8")
    (serve,) = [block for block in blocks(text, "sh") if block.body == "uv run weather-station\n"]
    environment = clean(tmp_path / "home", port, UV_OFFLINE="1", BASE_URL=f"http://127.0.0.1:{port}")
    shell = Shell(project, environment, port)
    ran = 0
    with shell.serving(serve.body):
        for block in blocks(text, "sh"):
            lines = [line for line in block.body.splitlines() if line not in RUN_BY_TEST_PROJECTS]
            if lines and block != serve:
                shell.run("\n".join(lines))
                ran += len(lines)
    assert ran >= 5


# --- What is written --------------------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """The repository's own Markdown, by path."""
    match = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in match}


def test_every_json_block_parses(renderings: Mapping[str, Rendering]) -> None:
    texts = list(documents().values())
    for variant in VARIANTS:
        texts += [content.decode() for path, content in renderings[variant].files.items() if path.endswith(".md")]
    match = [block.body for text in texts for block in blocks(text, "json")]
    assert match
    for body in match:
        json.loads(body.replace("…", ""))


def test_every_block_of_commands_is_shell_syntax() -> None:
    for page in DOCUMENTATION:
        for block in blocks(page.read_text("utf-8"), "sh"):
            command = ["bash", "-n", "-c", block.body]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert not done.stderr, f"{page.name}: {block.body}"


def test_every_mark_has_its_reason() -> None:
    marks = {block.mark for page in DOCUMENTATION for block in blocks(page.read_text("utf-8"), "sh")}
    assert all(mark in ("", *MARKS) or re.fullmatch(r"not run: .{10,}", mark) for mark in marks), marks


def test_the_readme_is_short() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"```sh\n{TEST_COMMAND}```" in text


def broken_links(texts: Mapping[str, str], exists: Callable[[str], bool]) -> Iterator[str]:
    """Relative links of Markdown files, by their path, that lead to no file or to no heading of it."""
    for path, text in texts.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in LINK.findall(prose):
            if re.match(r"[a-z]+:", link) or link.startswith(OF_THE_HOST):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
            if not exists(target):
                yield f"{path}: {link}"
            elif anchor and target in texts and anchor not in anchors(texts[target]):
                yield f"{path}: {link} (no such heading)"


def anchors(text: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_of_the_repository_leads_somewhere() -> None:
    assert list(broken_links(documents(), lambda path: (ROOT / path).exists())) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_link_of_a_project_leads_somewhere(renderings: Mapping[str, Rendering], variant: str) -> None:
    rendered = renderings[variant].files
    texts = {path: content.decode() for path, content in rendered.items() if path.endswith(".md")}
    existing = set(rendered) | {str(parent) for path in rendered for parent in Path(path).parents}
    assert {"README.md", "docs/tools.md"} <= texts.keys()
    assert list(broken_links(texts, existing.__contains__)) == []


def test_the_tables_are_up_to_date() -> None:
    """After a change: `uv run python -m tests.tables`."""
    text = tables.REFERENCE.read_text("utf-8")
    assert tables.with_tables(text) == text


def test_the_tables_have_every_question_and_page() -> None:
    text = tables.REFERENCE.read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in questions())
    linked = {Path(link).name for link in LINK.findall(text)}
    pages = {name.removesuffix(".jinja") for name in files(ROOT / "template" / "docs")}
    assert {name for name in pages if name.endswith(".md")} - linked == set()
