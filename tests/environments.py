"""Virtual environments of rendered projects, and the files that the projects of a test session share."""

from __future__ import annotations

import atexit
import csv
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from .support import run, uv

SHARED_FILES = "MCP_TEMPLATE_SHARED_TEST_FILES"
"""The variable in which the workers of a session find the folder of `shared_files`."""


@cache
def shared_files() -> Path:
    """Return the folder for what one project of a session makes and the others use; it is deleted at the end."""
    if SHARED_FILES not in os.environ:
        os.environ[SHARED_FILES] = tempfile.mkdtemp(prefix="mcp-template-")
        atexit.register(shutil.rmtree, os.environ[SHARED_FILES], ignore_errors=True)
    return Path(os.environ[SHARED_FILES])


def make_environment(project: Path) -> None:
    """Make the environment of a rendered project, and compile its modules."""
    done = run(uv(), "sync", "--quiet", cwd=project, UV_PROJECT_ENVIRONMENT=".venv")
    assert done.returncode == 0, done.stderr
    compile_modules(project / ".venv")


def compile_modules(environment: Path) -> None:
    """Compile the installed modules of a virtual environment, each module once in a session.

    The same module of another environment has been compiled if the hash in `RECORD` and the modification time are
    equal: the latter is in the compiled module, too.
    """
    windows = os.name == "nt"
    compiled = shared_files() / "compiled"
    compiled.mkdir(exist_ok=True)
    version = re.search(r"^version(?:_info)? = 3\.(\d+)", (environment / "pyvenv.cfg").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    tag = f"cpython-3{version[1]}"
    missing: dict[Path, tuple[Path, Path]] = {}
    for record in environment.glob("Lib/site-packages/*/RECORD" if windows else "lib/*/site-packages/*/RECORD"):
        for name, digest, _ in csv.reader(record.read_text("utf-8").splitlines()):
            source = record.parent.parent / name
            if not name.endswith(".py") or name.startswith("..") or not digest or not source.exists():
                continue
            own = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
            own.parent.mkdir(exist_ok=True)
            shared = compiled / f"{digest}-{int(source.stat().st_mtime)}-{tag}"
            if not _link(shared, own):
                missing[source] = own, shared
    if missing:
        python = environment / ("Scripts/python.exe" if windows else "bin/python")
        modules = environment / "modules"
        modules.write_text("".join(f"{source}\n" for source in missing), "utf-8")
        # Its status is 1 where a package contains a file that this version of Python cannot compile.
        run(python, "-m", "compileall", "-q", "-j", "0", "-i", modules, cwd=environment)
        modules.unlink()
        for own, shared in missing.values():
            _link(own, shared)


def _link(existing: Path, new: Path) -> bool:
    """Return whether `new` exists, after an attempt to make it a link to `existing`."""
    try:
        os.link(existing, new)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True
