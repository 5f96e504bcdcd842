"""The generated server as its command starts it, with the benchmark's tools in place of its own."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import _tools

package = os.environ["PACKAGE"]
main = importlib.import_module(f"{package}.__main__").main
assembly = importlib.import_module(f"{package}.server")


def register(server: Any) -> None:
    _tools.register(lambda function, name: server.add_tool(function, name=name))


vars(assembly)["register"] = register
sys.exit(main([]))
