"""Write docs/pictures/ from a server that runs, in about eleven minutes.

    python3 with_uv.py run python -m pictures.build [--only dashboards|terminal] [--seconds 600]

Dashboards: the panels of the committed Grafana JSON, with what a real Prometheus answers to their queries after it has
scraped a real server under traffic; the drawing is ours, not Grafana's. The trace is one of those that the server
exported over OTLP. The terminal shows README's first commands, run in a pseudo-terminal. Needs Prometheus and git.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from fcntl import ioctl
from html import escape
from pathlib import Path
from typing import Any

from copier import run_copy

from tests.live_servers import free_port
from tests.support import DEFAULT, ROOT, clean_environment, copy_template, path_with_uv
from tests.template_repository import commit, git
from tests.test_readme import ADDRESS, blocks

from . import draw, record

PICTURES = ROOT / "docs" / "pictures"
DASHBOARDS = ROOT / "template" / "ops" / "grafana" / "dashboards"
SHOWN: dict[str, tuple[str, Sequence[str] | None]] = {
    "dashboard": ("metrics", ["Now", "Traffic", "Errors"]),
    "metrics": ("metrics", None),
    "upstream": ("upstream", None),
    "circuit_breaker": ("circuit_breaker", None),
    "retry": ("retry", None),
    "rate_limit": ("rate_limit", None),
}
"""The dashboard and its rows, None for all of them, of each picture."""

ATTRIBUTES = ("mcp_server.status", "http.url", "http.status_code", "error.type")
"""Attributes of spans that the picture of a trace has."""

COLUMNS = 112
COMMAND_SECONDS = 300


def panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a picture of a dashboard, rows included, from the committed JSON."""
    dashboard, rows = SHOWN[name]
    row, chosen = "", []
    for panel in json.loads((DASHBOARDS / f"{dashboard}.json").read_text("utf-8"))["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        if rows is None or row in rows:
            chosen.append(panel)
    return chosen


def write(name: str, picture: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"{name}.svg").write_text(picture, "utf-8")
    sys.stdout.write(f"{name}.svg: {len(picture) / 1000:.0f} kB\n")


def draw_dashboards(place: Path, seconds: float) -> None:
    template, project = place / "template", place / "project"
    template.mkdir()
    copy_template(template)
    run_copy(str(template), project, data=DEFAULT, defaults=True, skip_tasks=True, quiet=True)
    record.sync(project)
    with record.running(project, place, seconds) as (prometheus, spans):
        for name in SHOWN:
            chosen = panels(name)
            results = {panel["title"]: prometheus.series(panel) for panel in chosen if panel["type"] != "row"}
            title = f"Dashboard {SHOWN[name][0]} of a generated server"
            write(name, draw.dashboard(chosen, results, prometheus.start, prometheus.end, title))
        write("trace", draw.waterfall(record.traced(spans), ATTRIBUTES))


# --- The terminal ----------------------------------------------------------------------------------------------------


def first_commands() -> Iterator[str]:
    """Yield the commands of README's first section, those in a checkout left out."""
    for block in blocks((ROOT / "README.md").read_text("utf-8"), "sh"):
        if block.section == "Start" and block.mark != "checkout":
            *before, last = re.split(r"(?<!\\)\n", block.body.strip())
            yield from (*before, f"{last} &" if block.mark == "serves" else last)


def draw_terminal(place: Path) -> None:
    checkout, folder_of_reader, home = place / "checkout", place / "folder_of_reader", place / "home"
    for folder in (checkout, folder_of_reader, home):
        folder.mkdir()
    copy_template(checkout)
    git("init", "--quiet", cwd=checkout)
    commit(checkout)
    (newest, *_) = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    git("tag", newest, cwd=checkout)
    (url,) = re.findall(r"^TEMPLATE=(\S+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    environment = clean_environment(
        HOME=str(home),
        PATH=path_with_uv(),
        PS1="\x1b[32m$\x1b[0m ",
        TERM="xterm-256color",
        UV_CACHE_DIR=os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{checkout}.insteadOf",
        GIT_CONFIG_VALUE_0=url,
    )
    port = free_port()
    environment["PORT"] = str(port)
    output = session(list(first_commands()), folder_of_reader, environment, port)
    picture = draw.terminal(shortened(output).replace(f"127.0.0.1:{port}", ADDRESS), COLUMNS, "The first minute")
    described = "".join(f"{command}\n" for command in first_commands())
    write("terminal", picture.replace("</title>", f"</title><desc>{escape(described)}</desc>", 1))


def shortened(output: str) -> str:
    """Leave out most of the files that Copier lists, and the paths of this machine in the command of its task."""
    lines = output.split("\n")
    created = [
        index for index, line in enumerate(lines) if re.match(r"(\x1b\[[\d;]*m)*\s+(\x1b\[[\d;]*m)*create", line)
    ]
    left_out = set(created[3:-2])
    kept = [line for index, line in enumerate(lines) if index not in left_out]
    if left_out:
        kept.insert(created[3], f"    ...     {len(left_out)} more\r")
    return re.sub(r"(Running task 1 of 1: )\[.*?\]", r"\1...", "\n".join(kept), flags=re.DOTALL)


def session(commands: Sequence[str], directory: Path, environment: Mapping[str, str], port: int) -> str:
    """Run commands in bash in a pseudo-terminal, and return what it showed.

    A command that goes on in the background is waited for until its line with the address has come.
    """
    ours, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],  # noqa: S607 (the shell on PATH)
        cwd=directory,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    prompt = "\x1b[32m$\x1b[0m "
    shown = read_until(ours, prompt)
    try:
        for command in commands:
            os.write(ours, f"{command.replace(ADDRESS, f'127.0.0.1:{port}')}\n".encode())
            shown += read_until(ours, prompt)
            if command.endswith("&"):
                shown += read_until(ours, "serving") + read_until(ours, "\n") + prompt
        return shown.removesuffix(prompt)
    finally:
        os.write(ours, b"kill %1; exit\n")
        shell.wait(60)
        os.close(ours)


def read_until(terminal: int, wanted: str) -> str:
    """Return what a terminal shows up to and including a text.

    Raises:
        TimeoutError: it did not come.
    """
    deadline, shown = time.monotonic() + COMMAND_SECONDS, b""
    while not shown.endswith(wanted.encode()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {wanted!r} after: {shown.decode(errors='replace')}")
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1)
    return shown.decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["dashboards", "terminal"])
    parser.add_argument("--seconds", type=float, default=600, help="how long the server has traffic")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name in ("dashboards", "terminal"):
            folder = Path(place) / name
            folder.mkdir()
            if options.only in (None, name):
                if name == "terminal":
                    draw_terminal(folder)
                else:
                    draw_dashboards(folder, options.seconds)
        shutil.rmtree(Path(place) / "terminal", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
