"""Runs uv with the given arguments; where uv is missing, installs it into a private environment first.

    python3 with_uv.py run pytest

Needs Python 3.11 or later with pip or venv, and nothing else. The private environment lies in the user's cache
directory; the system's Python is not touched, so this works where it refuses a plain pip (PEP 668).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MINIMUM = (0, 13)
REQUIREMENT = f"uv>={'.'.join(map(str, MINIMUM))}"


def main() -> int:
    if sys.version_info < (3, 11):
        return refuse(f"Python 3.11 or later is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    uv = installed() or private()
    if uv is None:
        return refuse(
            "uv is missing and could not be installed. Install it (https://docs.astral.sh/uv/), or Python's venv "
            "module (Debian: apt install python3-venv), then run this again."
        )
    arguments = [str(uv), *sys.argv[1:]]
    if os.name == "nt":  # execv there returns to the shell before the command has ended
        return subprocess.run(arguments, check=False).returncode
    os.execv(uv, arguments)


def installed() -> Path | None:
    """The uv on PATH, unless it is too old."""
    found = shutil.which("uv")
    return Path(found) if found and recent(Path(found)) else None


def private() -> Path | None:
    """The uv of the private environment, which is made at the first call."""
    home = cache_directory() / "mcp-server-template"
    scripts, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
    environment, target = home / "venv", home / "packages"
    candidates = (environment / scripts / f"uv{suffix}", target / "bin" / f"uv{suffix}")
    for candidate in candidates:
        if candidate.exists() and recent(candidate):
            return candidate
    print(f"with_uv.py: installing uv into {home}", file=sys.stderr, flush=True)
    python = str(environment / scripts / f"python{suffix}")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    ways = (
        ([sys.executable, "-m", "venv", "--clear", str(environment)], [python, *pip, REQUIREMENT]),
        ([sys.executable, *pip, "--target", str(target), REQUIREMENT],),  # where venv's ensurepip is not packaged
    )
    for way, candidate in zip(ways, candidates, strict=True):
        if all(subprocess.run(command, check=False, stdout=sys.stderr).returncode == 0 for command in way):
            return candidate
    return None


def recent(uv: Path) -> bool:
    done = subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.split()[1].split(".") if done.returncode == 0 else ["0", "0"]
    return tuple(int(part) for part in version[:2]) >= MINIMUM


def cache_directory() -> Path:
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return Path(named) if named else Path.home() / ".cache"


def refuse(reason: str) -> int:
    print(f"with_uv.py: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
