"""The complete examples of the documentation: each is a module, and everything that it registers is called."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import PromptReference

from harness import PROJECT, config, has
from stand_in import StandIn, respond
from weather_station.server import create_server

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAMPLES: dict[str, Any] = {"string": "7", "integer": 7}

EXAMPLES = [
    pytest.param(code, id=f"{page.stem} {number}")
    for page in sorted((PROJECT / "docs").glob("*.md"))
    for number, code in enumerate(BLOCK.findall(page.read_text("utf-8")), 1)
    if "\ndef register(server" in code and "\nasync def" in code and not re.search(r"^from \.\w", code, re.MULTILINE)
    if has("inbound.pages") or not re.search(r"import .*\bpage\b", code)
]
"""Blocks that are whole; one with `from .name import` builds on another block of its page."""


def test_the_page_about_tools_has_examples() -> None:
    assert len([example for example in EXAMPLES if str(example.id).startswith("tools ")]) >= 2


@pytest.mark.parametrize("code", EXAMPLES)
async def test_an_example_works(code: str, api: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "example.py"
    path.write_text(code, "utf-8")
    spec = spec_from_file_location("weather_station.documentation.example", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # pydantic looks generic models up there
    spec.loader.exec_module(module)
    api.behave(respond(200, b'{"state": "sold"}', content_type="application/json"))
    server = create_server(config(upstream_base_url=api.url))
    own = {tool.name for tool in server.registered_tools()}
    module.register(server)
    async with Client(server) as client:
        for tool in (await client.list_tools()).tools:
            if tool.name not in own:
                properties = tool.input_schema["properties"]
                arguments = {name: SAMPLES[schema["type"]] for name, schema in properties.items() if "type" in schema}
                result = await client.call_tool(tool.name, arguments)
                assert not result.is_error, result.content
        for template in (await client.list_resource_templates()).resource_templates:
            read = await client.read_resource(re.sub(r"\{.*?\}", "7", template.uri_template))
            assert read.contents
        for prompt in (await client.list_prompts()).prompts:
            required = [argument.name for argument in prompt.arguments or () if argument.required]
            rendered = await client.get_prompt(prompt.name, dict.fromkeys(required, "7"))
            assert rendered.messages
            if "completion" in code:
                reference = PromptReference(type="ref/prompt", name=prompt.name)
                completed = await client.complete(reference, {"name": "units", "value": "me"})
                assert completed.completion.values == ["metric"]
