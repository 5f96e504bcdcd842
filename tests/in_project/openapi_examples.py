"""Call the generated tools with the document's own examples, and return the API's own examples to them.

Reads `examples.json`, and prints how many came through unchanged, and why the others did not.
"""

import asyncio
import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from mcp import Client
from openapi_schema_validator import OAS30Validator, OAS31Validator

from tests.test_openapi import CASES

PACKAGE = next(path for path in Path("src").iterdir() if (path / "production").is_dir()).name


def fits(example: dict[str, Any]) -> bool:
    """Return whether the example fits its own document, by an independent validator."""
    schema, components = example["schema"]
    validator = OAS30Validator if example["version"] == "3.0" else OAS31Validator
    try:
        whole = {**schema, "components": components} if isinstance(schema, dict) else {}
        return bool(validator(whole).is_valid(example["value"]))
    except Exception:  # the schema itself is not valid
        return False


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal, 5 and 5.0 or true and 1 told apart."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


async def main(examples: list[dict[str, Any]]) -> dict[str, Any]:
    create_server = import_module(f"{PACKAGE}.server").create_server
    config = import_module(f"{PACKAGE}.production").ProductionConfig
    testing = import_module(f"{PACKAGE}.production.testing")
    counts: Counter[str] = Counter()
    misses: list[str] = []
    with testing.Api() as api:
        settings = config(upstream_base_url=api.url, rate_limit_requests=1_000_000, max_retries=0)
        async with Client(create_server(settings)) as client:
            for example in examples:
                case = CASES.get(example["tool"])
                if case is None:
                    continue
                kind, value = example["kind"], example["value"]
                arguments = dict(case["arguments"])
                answer = {"json": value} if kind == "response" else {"json": {}}
                if kind == "request":
                    arguments[example["argument"]] = value
                segments = case["request"]["path"].split("/")
                path = "/".join("{any}" if "%" in segment else segment for segment in segments)
                api.on(case["request"]["method"], path, status=example["status"], **answer)
                del api.requests[:]
                result = await client.call_tool(example["tool"], arguments)
                counts[kind] += 1
                problem = ""
                if result.is_error:
                    problem = f"refused: {result.content[0].text[:200]}"
                elif kind == "request" and not same(json.loads(api.requests[0].body), value):
                    problem = f"sent changed: {api.requests[0].body.decode()[:200]} for {json.dumps(value)[:200]}"
                elif kind == "response":
                    expected = value if isinstance(value, dict) else {"result": value}
                    content = result.structured_content
                    if not same(content, expected) and not same(content, {"result": value}):
                        problem = f"returned changed: {json.dumps(content)[:200]} for {json.dumps(value)[:200]}"
                if not problem:
                    counts[f"{kind} unchanged"] += 1
                elif kind == "request" and not fits(example):
                    counts["request refused or changed, as it does not fit its own document"] += 1
                else:
                    misses.append(f"{example['tool']} {example['pointer'][-120:]}: {problem}")
    return {"examples": counts, "misses": misses}


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.loads(Path("examples.json").read_text("utf-8")))), sys.stdout)
