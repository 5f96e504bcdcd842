"""Documents for the tests, and what was generated from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openapi_tools import Document, Generated, generate
from openapi_tools.generator import CASES_PATH

DOCUMENTS = Path(__file__).parent / "documents"


def generate_from_file(name: str, selection: str = "", existing_modules: frozenset[str] = frozenset()) -> Generated:
    return generate(Document(str(DOCUMENTS / name)), "package", selection, existing_modules)


def generate_from(document: dict[str, Any], folder: Path, **options: Any) -> Generated:
    path = folder / "document.json"
    path.write_text(json.dumps(document), "utf-8")
    return generate(Document(str(path)), "package", **options)


def document_with(paths: dict[str, Any], **components: Any) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": paths, "components": components}


def operation_with(**fields: Any) -> dict[str, Any]:
    return {"responses": {"200": {"description": "ok"}}} | fields


def json_response(schema: Any) -> dict[str, Any]:
    return {"200": {"description": "ok", "content": {"application/json": {"schema": schema}}}}


def findings(generated: Generated, kind: str) -> list[tuple[str, str]]:
    """Return the places and texts of the findings of a kind."""
    return [(finding.pointer, finding.text) for finding in generated.report.findings if finding.kind == kind]


def tool_names(generated: Generated) -> list[str]:
    return [tool.name for tool in generated.tools]


def case_of(generated: Generated, tool: str) -> dict[str, Any]:
    """Return the case of the generated tests for a tool."""
    cases: list[dict[str, Any]] = json.loads(generated.files[CASES_PATH])
    return next(case for case in cases if case["tool"] == tool)


def models_source(generated: Generated) -> str:
    return generated.files.get("src/package/tools/_models.py", "")
