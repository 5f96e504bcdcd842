"""What a start does not do: counted, since its time depends on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from harness import environment

START = """
import json, re, ssl, sys, types

sys.modules["weather_station.options"] = None
tools = sys.modules["weather_station.tools"] = types.ModuleType("weather_station.tools")
tools.register = lambda server: None
compiled, loaded = [], []
compile_pattern = re.compile

def compile(pattern, flags=0):
    compiled.append(str(pattern))
    return compile_pattern(pattern, flags)

re.compile = compile
ssl.SSLContext.load_verify_locations = lambda context, *files, **more: loaded.append(files)

from weather_station.__main__ import main

main(["--check"])

from mcp_types._wire_base import WireModel

messages = [WireModel]
for message in messages:
    messages += message.__subclasses__()
result = {
    "messages": len(messages),
    "built": [message.__name__ for message in messages if message.__pydantic_complete__],
    "compiled": [pattern for pattern in compiled if "(?P<secret>" in pattern],
    "loaded": len(loaded),
    "modules": list(sys.modules),
}
print("\\n" + json.dumps(result))
"""
"""Starts with `--check`, which does what a start does but for serving, and prints what was done."""

UNUSED = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf", "requests", "grpc", "redis")
"""Modules that a server without the address of a collector and of Redis has no use for, whatever its features."""


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    settings = environment(BASE_URL="http://127.0.0.1:9", SSL_CERT_FILE=__file__)
    run = subprocess.run([sys.executable, "-c", START], env=settings, capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def test_schemas_of_messages_are_not_built_before_the_first_one(start: dict[str, Any]) -> None:
    assert start["messages"] > 200
    assert len(start["built"]) < start["messages"] / 10, start["built"]


def test_patterns_of_secrets_are_compiled_when_a_text_needs_them(start: dict[str, Any]) -> None:
    assert len(start["compiled"]) < 15, start["compiled"]


def test_the_certificates_are_loaded_once(start: dict[str, Any]) -> None:
    assert start["loaded"] == 1


def test_modules_without_a_use_are_not_imported(start: dict[str, Any]) -> None:
    assert not [name for name in start["modules"] if name.startswith(UNUSED)]
