"""What the READMEs say is so: their commands run in order, their JSON parses, their links lead somewhere.

A shell block that does not run here has the reason in the line above it, `<!-- not run: reason -->`; one that serves
has `<!-- serves -->` and runs until the blocks after it, up to the next heading, are done. What stands in
another fence, such as console, is not run.
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
    DEADLINE_SECONDS,
    ROOT,
    TEMPLATE_PATHS,
    clean_environment,
    files,
    path_with_uv,
    questions,
    run,
    uv,
    wait_for,
)

README = ROOT / "README.md"
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIANTS = ("default", "minimal", "everything")
ADDRESS = "127.0.0.1:8000"

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

    def run(self, body: str) -> str:
        """Runs a block and returns what it printed; any command of it that fails fails the test."""
        read_end, write_end = os.pipe()
        with open(read_end, encoding="utf-8") as pipe:
            script = body.replace(ADDRESS, f"127.0.0.1:{self.port}") + f"\npwd >&{write_end}\n"
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
            self.directory = Path(pipe.read().strip())
        return done.stdout

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


def run_in_order(shell: Shell, text: str) -> list[str]:
    """Runs the blocks that run; returns what each of them printed."""
    output: list[str] = []
    ahead = [block for block in blocks(text, "sh") if not block.mark.startswith("not run: ")]
    while ahead:
        block = ahead.pop(0)
        if block.mark != "serves":
            output.append(shell.run(block.body))
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


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.skipif(sys.platform == "win32", reason="the commands are those of a POSIX shell")
def test_the_commands_of_the_readme_work_in_order(tmp_path: Path) -> None:
    checkout, port = tmp_path / "checkout", free_port()
    checkout.mkdir()
    for name in (*TEMPLATE_PATHS, "with_uv.py"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout / name)
    text = README.read_text("utf-8")
    shell = Shell(checkout, clean(tmp_path / "home", port, MCP_TEMPLATE_STRICT="1"), port)
    output = run_in_order(shell, text)
    assert len(output) >= 3
    call = next(match for match in output if match.startswith("{") and '"jsonrpc"' in match)
    assert json.loads(call)["result"]["structuredContent"]["status"] in ("healthy", "degraded")
    assert (tmp_path / "my-server" / "uv.lock").exists()
    assert "```sh\npython3 with_uv.py run pytest\n```" in text


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


def test_every_code_block_that_is_not_run_has_a_reason() -> None:
    marks = {block.mark for block in blocks(README.read_text("utf-8"), "sh")}
    assert all(mark in ("", "serves") or re.fullmatch(r"not run: .{10,}", mark) for mark in marks), marks


def broken_links(texts: Mapping[str, str], exists: Callable[[str], bool]) -> Iterator[str]:
    """Relative links of Markdown files, by their path, that lead to no file or to no heading of it."""
    for path, text in texts.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in LINK.findall(prose):
            if re.match(r"[a-z]+:", link):
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
    text = README.read_text("utf-8")
    assert tables.with_tables(text) == text


def test_the_tables_have_every_question_and_page() -> None:
    text = README.read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in questions())
    linked = {link.removeprefix("template/docs/") for link in LINK.findall(text)}
    assert set(files(ROOT / "template" / "docs")) - linked == set()
