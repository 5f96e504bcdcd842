"""Writing to stderr without blocking the event loop."""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections import deque
from datetime import UTC, datetime

from .log_formats import as_json

MAX_QUEUED = 8 * 1024 * 1024
"""Bytes that are queued while stderr is not read; further lines are dropped and counted."""

FLUSH_SECONDS = 1.0
"""Time limit for writing the queued lines when the process ends."""


class Stderr:
    """Writer of whole lines to a file descriptor. It never waits for the reader.

    A pipe that nobody reads blocks its writer after 64 KiB, and with it every call and probe of the server. A line is
    therefore written at once only where `poll` reports room for it, which means up to `PIPE_BUF` bytes (POSIX also
    writes those atomically). Other lines are queued, and a thread writes them in order. Where `poll` is missing, as on
    Windows, every line is written at once.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._poll = _poll(descriptor)

    def write(self, line: bytes) -> bool:
        """Write or queue a line, and return whether that was possible: not where the queue is full or stderr closed."""
        with self._lock:
            if self._poll is None:
                return _write_all(self._descriptor, line)
            if self._queue or len(line) > select.PIPE_BUF or not self._poll.poll(0):
                return self._enqueue(line)
            return self._write_now(line)

    def flush(self, seconds: float) -> bool:
        """Wait at most `seconds` until the queue is empty, and return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, seconds)

    def _write_now(self, line: bytes) -> bool:
        try:
            written = os.write(self._descriptor, line)
        except BlockingIOError:
            written = 0
        except OSError:  # stderr is closed, so the error cannot be reported
            return False
        return written == len(line) or self._enqueue(line[written:])

    def _enqueue(self, line: bytes) -> bool:
        if self._queued_bytes + len(line) > MAX_QUEUED:
            self._dropped += 1
            return False
        self._queue.append(line)
        self._queued_bytes += len(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_queue, name="stderr", daemon=True)
            self._thread.start()
            atexit.register(self.flush, FLUSH_SECONDS)
        self._changed.notify_all()
        return True

    def _write_queue(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                line = self._queue[0]
            _write_all(self._descriptor, line)
            with self._changed:
                self._queue.popleft()
                self._queued_bytes -= len(line)
                if not self._queue and self._dropped:
                    self._enqueue(_dropped_line(self._dropped))
                    self._dropped = 0
                self._changed.notify_all()


def _poll(descriptor: int) -> select.poll | None:
    if sys.platform == "win32":
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


def _write_all(descriptor: int, line: bytes) -> bool:
    """Write all of `line`, however long that takes, and return whether that was possible."""
    poll = _poll(descriptor)
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:  # a parent process made the pipe non-blocking
            if poll is not None:
                poll.poll()
        except OSError:
            return False
    return True


def _dropped_line(count: int) -> bytes:
    return as_json(
        {
            "timestamp": datetime.now(UTC),
            "level": "warning",
            "severity": "WARNING",
            "logger": __name__,
            "message": "log lines were dropped because stderr was not read",
            "dropped": count,
        }
    )


STDERR = Stderr(2)
"""The process's stderr."""
