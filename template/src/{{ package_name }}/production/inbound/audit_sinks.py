"""Where audit records go: stderr, or a file that is rotated; `audit_otlp` has another sink."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from pathlib import Path
from typing import Protocol

from ..observe.stderr import STDERR

CHECK_SECONDS = 1.0
"""Least time between two checks that the path still leads to the open file."""


class Sink(Protocol):
    """A place for records. Its methods raise `OSError` if a record cannot be kept."""

    durable: bool
    """Whether `sync` has to be awaited after a record."""

    def open(self) -> None:
        """Prepare for the first record."""
        ...

    def write(self, line: bytes) -> None: ...

    async def sync(self) -> None:
        """Wait until all records are kept."""
        ...

    def close(self) -> int:
        """Return how many records are not kept, and never will be."""
        ...


class StderrSink:
    """The process's stderr, beside the log lines."""

    durable = False

    def open(self) -> None: ...

    def write(self, line: bytes) -> None:
        if not STDERR.write(line):
            raise OSError(errno.EAGAIN, "stderr is not read, or it is closed")

    async def sync(self) -> None: ...

    def close(self) -> int:
        return 0


class FileSink:
    """A file that belongs to one process. It is renamed to `<name>.1` when it is full, and `.1` to `.2`.

    Args:
        path: The file; its folder has to exist.
        max_bytes: Size at which it is renamed.
        kept: Renamed files that are kept; older ones are deleted.
        durable: Whether `sync` waits for the disk (fsync).
    """

    def __init__(self, path: Path, *, max_bytes: int, kept: int, durable: bool) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self.durable = durable
        self._descriptor: int | None = None
        self._size = 0
        self._checked_at = 0.0
        self._written = 0
        self._synced = 0
        self._syncing = asyncio.Lock()

    def open(self) -> None:
        """Open the file, whose last line may be incomplete after a crash of the machine.

        Raises:
            OSError: it cannot be opened, or another process has it open as its audit file.
        """
        if self._descriptor is not None:
            return
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path, flags, 0o600)
        try:
            _lock(descriptor)
            self._size = os.fstat(descriptor).st_size
            if self._size:
                os.lseek(descriptor, -1, os.SEEK_END)
                if os.read(descriptor, 1) != b"\n":
                    self._size += os.write(descriptor, b"\n")
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._checked_at = time.monotonic()

    def write(self, line: bytes) -> None:
        now = time.monotonic()
        if now - self._checked_at > CHECK_SECONDS:
            self._checked_at = now
            if not self._is_in_place():  # another program has moved or deleted it
                self.close()
        self.open()
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        assert self._descriptor is not None  # noqa: S101 (opened above)
        written = os.write(self._descriptor, line)
        if written < len(line):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written
        self._written += 1

    async def sync(self) -> None:
        """Wait until all records that are written by now are on the disk; one fsync serves all that wait for it."""
        number = self._written
        async with self._syncing:
            if self._synced >= number or self._descriptor is None:
                return
            covered = self._written
            descriptor = os.dup(self._descriptor)  # the file may be rotated meanwhile
            try:
                await asyncio.to_thread(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            self._synced = covered

    def close(self) -> int:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if self.durable:
                    os.fsync(descriptor)
                    self._synced = self._written
            finally:
                os.close(descriptor)
        return 0

    def _is_in_place(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        self.close()
        for number in range(self._kept, 0, -1):
            older = self._path_of(number - 1)
            if older.exists():
                older.replace(self._path_of(number))
        self.open()

    def _path_of(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _lock(descriptor: int) -> None:
    """Take the lock of an open file, which ends when it is closed. Windows has no such lock.

    Raises:
        OSError: another process, or another server of this one, has it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another server writes to it: each one needs a file of its own") from None
