"""Serves an ASGI application as the generated server does: httptools, uvloop, no access log, JSON or SSE."""

from __future__ import annotations

import os
from typing import Any

import uvicorn

JSON = os.environ.get("RESPONSE_MODE", "json") == "json"
PORT = int(os.environ["PORT"])


def serve(application: Any) -> None:
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=PORT,
        http="httptools",
        loop="uvloop",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
