"""Read git repositories without a checkout, as git stores them, without conversions."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from post_generate import ProjectError

EXECUTABLE, PLAIN, LINK = "100755", "100644", "120000"


class File(NamedTuple):
    """Content and mode of one file, as git stores them; the content of a symbolic link is its target."""

    content: bytes
    mode: str = PLAIN


Tree = Mapping[str, File]
"""Files by their path from the root, with forward slashes."""


def git(folder: Path, *arguments: str, stdin: bytes | None = None, **environment: str) -> bytes:
    """Run git in `folder`, with these variables, and return its output.

    Raises:
        ProjectError: git failed; the message has its reason.
    """
    done = run(folder, *arguments, stdin=stdin, **environment)
    if done.returncode != 0:
        raise ProjectError(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def run(
    folder: Path, *arguments: str, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder`, with these variables; the caller checks its exit status."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, input=stdin, capture_output=True, check=False, env=os.environ | environment
    )


def split(listed: bytes) -> list[str]:
    """Return the paths in an output of `git … -z`."""
    return [path.decode(errors="surrogateescape") for path in listed.split(b"\0") if path]


def listing(folder: Path, commit: str) -> dict[str, tuple[str, str]]:
    """Return mode and object of each file of a commit below `folder`, by relative path, without submodules.

    Raises:
        ProjectError: the repository lacks the commit.
    """
    entries = {}
    for line in split(git(folder, "ls-tree", "-r", "-z", commit)):
        described, _, path = line.partition("\t")
        mode, kind, name = described.split()
        if kind == "blob":
            entries[path] = (mode, name)
    return entries


def read(folder: Path, listed: Mapping[str, tuple[str, str]], paths: Iterable[str]) -> dict[str, File]:
    """Return the files of a listing that are among `paths`.

    Raises:
        ProjectError: git failed.
    """
    selected = {path: listed[path] for path in paths if path in listed}
    objects = sorted({name for _, name in selected.values()})
    output = git(folder, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in objects).encode())
    contents, position = {}, 0
    for name in objects:
        end = output.index(b"\n", position)
        size = int(output[position:end].split()[2])
        contents[name] = output[end + 1 : end + 1 + size]
        position = end + size + 2
    return {path: File(contents[name], mode) for path, (mode, name) in selected.items()}
