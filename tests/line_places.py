"""The enclosing blocks of each line of a file, by parsers of its language: the expected values of the merge tests.

The merge itself uses an outline by indentation, and these parsers are independent of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import yaml

Place = tuple[str, ...]
"""Names from the outermost block to the innermost one."""

NAMES = ("title", "name", "alert", "record", "uses", "run", "refId", "id")
"""Keys that identify an item of a list, in order of preference."""


def places(path: str, text: str) -> list[Place]:
    """Return the place of each line.

    Raises:
        ValueError: the file has a syntax error.
    """
    kind = path.rpartition(".")[2]
    lines = text.split("\n")
    if kind in ("json", "yml", "yaml"):
        return _of_yaml(text, lines)
    if kind == "py":
        return _of_python(text, len(lines))
    if kind == "md":
        return _of_markdown(lines)
    if kind == "toml":
        return _of_toml(lines)
    return [()] * len(lines)


def _of_yaml(text: str, lines: list[str]) -> list[Place]:
    """Return the places in YAML or JSON, which is parsed as YAML so that comments can mark edits."""
    line_places: list[Place] = [()] * len(lines)
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error

    def last_line(node: yaml.Node) -> int:
        """Return the last line of a block: the parser counts all up to the next token, such as a comment after it."""
        last = min(node.end_mark.line - (node.end_mark.column == 0), len(lines) - 1)
        while last > node.start_mark.line and not isinstance(node, yaml.ScalarNode):
            content = lines[last].lstrip()
            if content and not (content.startswith("#") and len(lines[last]) - len(content) < node.start_mark.column):
                break
            last -= 1
        return last

    def visit(node: yaml.Node | None, path: Place, above: tuple[yaml.Node, ...] = ()) -> None:
        if node in above:
            raise ValueError("an alias refers to a block that contains it")
        above = (*above, *([node] if node else []))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                last = last_line(value)
                for line in range(key.start_mark.line, last + 1):
                    line_places[line] = path
                inner = (*path, str(key.value))
                if isinstance(value, (yaml.MappingNode, yaml.SequenceNode)):
                    for line in range(key.start_mark.line + 1, last + 1):
                        line_places[line] = inner
                visit(value, inner, above)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                inner = (*path, _name(item))
                for line in range(item.start_mark.line, last_line(item) + 1):
                    line_places[line] = inner
                visit(item, inner, above)

    visit(root, ())
    return line_places


def _name(item: yaml.Node) -> str:
    if isinstance(item, yaml.ScalarNode):
        return ""
    pairs = item.value if isinstance(item, yaml.MappingNode) else ()
    named = {key.value: value.value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    return next((f"{name}={named[name]}" for name in NAMES if isinstance(named.get(name), str)), "-")


def _of_python(text: str, count: int) -> list[Place]:
    line_places: list[Place] = [()] * count
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(str(error)) from error

    def visit(node: ast.AST, path: Place) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = (*path, child.name)
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                for line in range(first - 1, child.end_lineno or first):
                    line_places[line] = inner
            visit(child, inner)

    visit(tree, ())
    return line_places


def _of_markdown(lines: list[str]) -> list[Place]:
    line_places: list[Place] = []
    path: list[tuple[int, str]] = []
    fenced = False
    for line in lines:
        fenced ^= line.lstrip().startswith("```")
        heading = re.match(r"(#+) (.*?)(?: *<!--.*)?$", line)
        if heading and not fenced:
            level = len(heading[1])
            path = [(depth, title) for depth, title in path if depth < level] + [(level, heading[2])]
        line_places.append(tuple(title for _, title in path))
    return line_places


def _of_toml(lines: list[str]) -> list[Place]:
    line_places: list[Place] = []
    table = ""
    for line in lines:
        if header := re.match(r"\[\[?[\w.\"-]+\]\]?", line):
            table = header[0]
        line_places.append((table,))
    return line_places


def marked(text: str, mark: str) -> Iterator[int]:
    """Return the numbers of the lines with a mark, counted from 0."""
    return (number for number, line in enumerate(text.split("\n")) if mark in line)
