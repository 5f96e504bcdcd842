"""The command line: validates the configuration, then serves over HTTP or stdio.

Exit status: 0 after a clean end; 1 if the server cannot start or `--check` fails; 2 for an invalid setting or option;
128 + n after signal n. Over stdio only the protocol is written to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module, metadata, resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

# Modules of the package are imported where they are needed: their imports take about a second, which --help and
# --version need not wait for. For the same reason OPTIONS repeats values of another module.
if TYPE_CHECKING:
    from .production.config import ProductionConfig
    from .production.sdk import ProductionServer

ANSWERS: Mapping[str, Any] = json.loads(
    resources.files(__package__).joinpath("production", "answers.json").read_text("utf-8")
)
SLUG: str = ANSWERS["slug"]
COMMANDS: Mapping[str, Mapping[str, Any]] = {
    command: {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for command, options in ANSWERS["commands"].items()
}
"""Options that run a command instead of serving, each with its keyword arguments for `argparse`."""

OPTIONS = {
    "transport": ("how clients connect", "MCP_TRANSPORT", "http"),
    "host": ("the address to listen on", "HOST", "127.0.0.1"),
    "port": ("the port to listen on; 0 lets the system choose", "PORT", 8000),
}
"""Options that override a field of `ProductionConfig`: its meaning, environment variable and default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:  # also while modules are imported
        return 130


def _main(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    # For the time before the server handles signals: a process with PID 1 ignores SIGTERM without a handler.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    gc.disable()  # the imports create no garbage, and collections take a tenth of their time
    _defer_messages()
    from .production.config import ConfigError, StartError

    try:
        overrides = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
        for name in COMMANDS:
            if value := getattr(options, name):
                from .production import features

                done = features.COMMANDS[name](value, overrides)
                return done if isinstance(done, int) else _report(done, 0)
        return _run(_load(overrides), check=options.check)
    except ConfigError as error:
        from .production.config import probable_typos

        return _report([*error.problems, *probable_typos(error.problems)], 2)
    except StartError as error:
        return _report(str(error).splitlines(), 1)
    finally:
        gc.enable()


def _defer_messages() -> None:
    """Have the schemas of the protocol's messages built when the first such message arrives, which takes milliseconds.

    The SDK has over 300 of these internal models, and building all of them while it is imported takes a sixth of the
    start. An SDK that is built otherwise is imported as it is.
    """
    with suppress(ImportError, AttributeError):
        from mcp_types._wire_base import WireModel

        WireModel.model_config["defer_build"] = True


def _load(overrides: dict[str, object]) -> ProductionConfig:
    """Return the configuration; where it is not valid, the problems of the owner's settings are listed too."""
    from .production.config import ConfigError, ProductionConfig

    try:
        return ProductionConfig.load(**overrides)
    except ConfigError as error:
        options = _options()
        raise ConfigError([*error.problems, *(options.problems() if options else ())]) from None


def _options() -> Any:
    """Return the module that handles the owner's `options.py`; `None` where this project is without it."""
    name = f"{__package__}.production.serve.options"
    return import_module(name) if find_spec(name) else None


def _run(config: ProductionConfig, *, check: bool) -> int:
    if config.transport == "stdio" and not check:
        return _serve_stdio(config, *_redirect_stdio())
    from .production.serve import connections, lifecycle, startup
    from .server import create_app, create_server

    server = create_server(config)
    if config.transport == "http":
        application = create_app(server)
        startup.require_http_allowed(server.registry)
    if check:
        return _check(server)
    try:
        listener = connections.bind(config.host, config.port)
    except OSError as error:
        problem = f"cannot listen on {config.host}:{config.port}: {error.strerror}"
        return _report([f"{problem}. Choose another address with --host and --port"], 1)
    with listener:
        startup.announce_when_started(server.registry, startup.url(listener))
        _enable_gc()
        lifecycle.serve_http(server, application, listener)
    return 0


def _serve_stdio(config: ProductionConfig, source: int, sink: int) -> int:
    from .production.serve import startup, stdio
    from .server import create_server

    server = create_server(config)
    startup.announce_when_started(server.registry, "stdio")
    _enable_gc()
    stdio.serve(server, source, sink)
    return 0


def _enable_gc() -> None:
    """Enable garbage collection, except of the imported modules, which live as long as the process."""
    gc.freeze()
    gc.enable()


def _redirect_stdio() -> tuple[int, int]:
    """Return file descriptors of the original stdin and stdout, empty stdin, and redirect stdout to stderr.

    Called before the tools are imported: whatever they print, even at import, would break the protocol on stdout.

    Raises:
        StartError: one of the streams is closed.
    """
    from .production.config import StartError

    if None in (sys.stdin, sys.stdout, sys.stderr):  # as they were when Python started
        raise StartError("stdin, stdout or stderr is closed: over stdio a host has to start the server with all three")
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return source, sink


def _check(server: ProductionServer) -> int:
    from .production.serve import startup

    lines, ready = asyncio.run(startup.check(server))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if ready else 1


def _report(lines: Sequence[str], status: int) -> int:
    """Write `lines` to stderr, as JSON where LOG_FORMAT says so and they are problems, and return `status`."""
    if status:
        from .production.config import secret_texts, without_secrets

        secrets = secret_texts()
        lines = [without_secrets(line, secrets) for line in lines]
    from .production.terminal import one_line

    as_json = status and os.environ.get("LOG_FORMAT", "").strip().lower() == "json"
    for line in lines:
        sys.stderr.write(f"{_as_json(line) if as_json else f'{SLUG}: {one_line(line)}'}\n")
    return status


def _as_json(message: str) -> str:
    """Return a line as the log has it in JSON."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    fields = {"timestamp": now, "level": "error", "severity": "ERROR", "logger": __package__, "message": message}
    return json.dumps(fields)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from .production.terminal import one_line

        super().error(one_line(message))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (accepted: from 0 to 65535)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=SLUG,
        description="Serve tools to MCP clients over HTTP or stdio.",
        epilog=f"""examples:
  {SLUG}                          serve http://{OPTIONS["host"][2]}:{OPTIONS["port"][2]}/mcp
  {SLUG} --port 9000              serve on another port
  {SLUG} --transport stdio        serve a host that starts the server itself
  {SLUG} --check                  validate the configuration and probe the dependencies

Options override environment variables; .env.example describes every setting.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--transport", choices=("http", "stdio"), help=_help("transport"))
    parser.add_argument("--host", metavar="ADDRESS", help=_help("host"))
    parser.add_argument("--port", type=_port, help=_help("port"))
    parser.add_argument("--check", action="store_true", help="report on configuration and dependencies, then exit")
    for name, options in COMMANDS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    version = f"{SLUG} {_version()}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    return parser


def _help(option: str) -> str:
    text, variable, default = OPTIONS[option]
    return f"{text} ({variable}, default: {default})"


def _version() -> str:
    try:
        return metadata.version(SLUG)
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
