"""The command line: checks the configuration, then serves over HTTP or stdio.

Exit status: 0 after a clean end, 1 when the server cannot start or a check fails, 2 for a bad configuration or option.
Nothing is ever written to stdout while a client may be reading the protocol there.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

# Everything else is imported where it is needed, so that --help and --version answer at once.
if TYPE_CHECKING:
    from .production.config import ProductionConfig
    from .production.sdk import ProductionServer

SLUG: str = json.loads(resources.files(__package__).joinpath("production", "answers.json").read_text("utf-8"))["slug"]

OPTIONS = {
    "transport": ("how clients connect", "MCP_TRANSPORT", "http"),
    "host": ("the address to listen on", "HOST", "127.0.0.1"),
    "port": ("the port to listen on; 0 lets the system choose", "PORT", 8000),
}
"""Options that override a setting: what it means, its variable and its default, as `ProductionConfig` has them."""


CLIENTS = ("claude-code", "claude-desktop", "cursor", "vscode")
"""Those of `production.client_config`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(argv)
    # Until the server handles it: the kernel would ignore the signal for a process with PID 1.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    gc.disable()  # collections during the imports find nothing and take a tenth of the start
    from .production.config import ConfigError, ProductionConfig, StartError

    try:
        if options.init_env:
            from .production.serve.env_file import create

            return _say(create(Path.cwd()), 0)
        given = {name: getattr(options, name) for name in OPTIONS}
        config = ProductionConfig.load(**{name: value for name, value in given.items() if value is not None})
        if options.print_config:
            return _print_config(config, options.print_config, options.transport or "stdio")
        return _run(config, check=options.check)
    except ConfigError as error:
        return _say(error.problems, 2)
    except StartError as error:
        return _say(str(error).splitlines(), 1)
    except KeyboardInterrupt:
        return 130
    finally:
        gc.enable()


def _run(config: ProductionConfig, *, check: bool) -> int:
    if config.transport == "stdio" and not check:
        return _serve_stdio(config, *_claim_stdio())
    from .production.serve import lifecycle, listen, startup
    from .server import create_app, create_server

    server = create_server(config)
    if config.transport == "http":
        application = create_app(server)
        startup.may_serve_http(server.registry)
    if check:
        return _check(server)
    try:
        listener = listen.bind(config.host, config.port)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        return _say([f"cannot listen on {where}: {error.strerror}. Choose another with --host and --port"], 1)
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
    """Exempt what the imports made from garbage collection: it lives as long as the process."""
    gc.freeze()
    gc.enable()


def _claim_stdio() -> tuple[int, int]:
    """Return file descriptors of the protocol's input and output; stdin becomes empty, and prints go to stderr.

    This happens before the tools are imported, because a print at import would break the protocol.
    """
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return source, sink


def _check(server: ProductionServer) -> int:
    from .production.serve import startup

    lines, ready = asyncio.run(startup.check(server))
    print("\n".join(lines))  # noqa: T201 (a report for the terminal; nothing serves)
    return 0 if ready else 1


def _print_config(config: ProductionConfig, client: str, transport: str) -> int:
    from .production.serve import host_config

    document = host_config.entry(client, config, transport=transport)
    print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201 (for a file; nothing serves)
    return _say([f"put this into {host_config.CLIENTS[client].file} (docs/clients.md)"], 0)


def _say(lines: Sequence[str], status: int) -> int:
    for line in lines:
        sys.stderr.write(f"{SLUG}: {line}\n")
    return status


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (accepted: from 0 to 65535)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=SLUG,
        description="Serves its tools to MCP clients, over HTTP or stdio.",
        epilog=f"""examples:
  {SLUG}                          serve http://{OPTIONS["host"][2]}:{OPTIONS["port"][2]}/mcp
  {SLUG} --port 9000              on another port
  {SLUG} --transport stdio        for a client that starts the server itself
  {SLUG} --check                  validate the configuration and its connections, then exit
  {SLUG} --print-config vscode    what a client's configuration file needs

Options win over the environment; every setting is described in .env.example.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--transport", choices=("http", "stdio"), help=_help("transport"))
    parser.add_argument("--host", help=_help("host"))
    parser.add_argument("--port", type=_port, help=_help("port"))
    parser.add_argument("--check", action="store_true", help="report on configuration and connections, then exit")
    parser.add_argument(
        "--print-config",
        metavar="CLIENT",
        choices=CLIENTS,
        help=f"print the configuration of a client, over stdio unless --transport http: {', '.join(CLIENTS)}",
    )
    parser.add_argument("--init-env", action="store_true", help="make .env from .env.example with random secrets")
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
