"""The size of the tools: of each one, and of all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from document_builders import document_with, findings, generate_from, json_response, operation_with
from openapi_tools import Generated


def nested(levels: int, width: int, name: str) -> dict[str, Any]:
    """Return a schema of objects in objects, with `width` texts in each."""
    properties: dict[str, Any] = {f"{name}_{number}": {"type": "string"} for number in range(width)}
    return {"type": "object", "properties": properties | ({"next": nested(levels - 1, width, name)} if levels else {})}


def tools_of_sizes(folder: Path, sizes: list[int], **budgets: Any) -> Generated:
    """Generate a tool of each size, in levels of about 300 tokens; no two share a class."""
    paths = {
        f"/x{number}": {"get": operation_with(responses=json_response(nested(levels, 30, f"of_{number}")))}
        for number, levels in enumerate(sizes)
    }
    return generate_from(document_with(paths), folder, **budgets)


def test_a_tool_above_its_budget_is_cut_and_the_others_are_not(tmp_path: Path) -> None:
    whole = tools_of_sizes(tmp_path, [1, 12])
    assert not findings(whole, "size")
    small, large = whole.tokens.values()
    cut = tools_of_sizes(tmp_path, [1, 12], budget=large // 2)
    after_small, after_large = cut.tokens.values()
    assert after_small == small
    assert large // 4 < after_large <= large // 2
    ((pointer, text),) = findings(cut, "size")
    assert pointer == "#/paths/~1x1/get"
    assert text.startswith(f"reduced from about {large:,} to ")


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_all_tools_together_are_cut_to_the_total_the_largest_ones_first(tmp_path: Path, share: float) -> None:
    sizes = [1, 1, 1, 12, 14, 16]
    whole = [*tools_of_sizes(tmp_path, sizes).tokens.values()]
    total = int(sum(whole) * share)
    cut = [*tools_of_sizes(tmp_path, sizes, total_budget=total).tokens.values()]
    assert total // 2 < sum(cut) <= total
    assert cut[:3] == whole[:3]


def test_tools_that_exceed_the_total_in_spite_of_it_are_reported(tmp_path: Path) -> None:
    generated = tools_of_sizes(tmp_path, [0] * 5, total_budget=100)
    assert len(generated.tools) == 5
    assert findings(generated, "size")[-1][0] == "#/paths"
    assert "select fewer operations" in findings(generated, "size")[-1][1]
