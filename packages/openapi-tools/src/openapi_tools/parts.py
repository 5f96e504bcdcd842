"""The parts of a Python file: its head, and each function or class; whether a part has changed."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize

HEAD = ""
"""The name of the part before the first function or class."""

REGISTER = "register"


def split(source: str) -> dict[str, str]:
    """Return the text of each part by its name, in the file's order; comments belong to the part that follows them.

    Raises:
        SyntaxError: `source` is not valid Python.
    """
    lines = source.splitlines(keepends=True)
    parts: dict[str, str] = {}
    end = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            comments = start
            while comments > end and lines[comments - 1].lstrip().startswith("#"):
                comments -= 1
            _append(parts, HEAD, "".join(lines[end:comments]))
            parts[node.name] = "".join(lines[comments : node.end_lineno])
            end = node.end_lineno or start
    _append(parts, HEAD, "".join(lines[end:]))
    return parts


def _append(parts: dict[str, str], name: str, text: str) -> None:
    """Add text that is no function or class to the head."""
    if text.strip():
        parts[name] = f"{parts[name].rstrip()}\n{text.lstrip()}" if name in parts else text


def joined(parts: dict[str, str]) -> str:
    """Return the source of a file with these parts, the head first."""
    head = parts.get(HEAD, "").strip("\n")
    texts = [text.strip("\n") for name, text in parts.items() if name != HEAD]
    return "\n\n\n".join(text for text in [head, *texts] if text) + "\n"


def fingerprint(text: str) -> str:
    """Return a hash of the code, texts and comments of a part, independent of its formatting."""
    try:
        tree = ast.dump(ast.parse(text))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    except (SyntaxError, tokenize.TokenError):
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashlib.sha256(f"{tree}{comments}".encode()).hexdigest()[:16]


def imported(head: str) -> dict[str, str]:
    """Return the import statements of a head, each for one name, by that name."""
    statements: dict[str, str] = {}
    for node in ast.parse(head).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                single = type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})
                statements[name] = ast.unparse(single)
    return statements


def merged_heads(head: str, other: str) -> str:
    """Return the head `head` with the imports of `other` that it lacks."""
    own = imported(head)
    missing = [statement for name, statement in imported(other).items() if name not in own]
    return head.rstrip("\n") + "\n" + "".join(f"{statement}\n" for statement in missing)


def registrations(register: str) -> dict[str, str]:
    """Return the statements of `register(server)` by the function that they add or call; others by their text."""
    (function,) = (node for node in ast.parse(register).body if isinstance(node, ast.FunctionDef))
    statements: dict[str, str] = {}
    for node in function.body:
        text = ast.unparse(node)
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or isinstance(node, ast.Pass):
            continue
        call = node.value if isinstance(node, ast.Expr) else None
        named = call.args[1] if isinstance(call, ast.Call) and len(call.args) > 1 else getattr(call, "func", None)
        statements[named.id if isinstance(named, ast.Name) else text] = text
    return statements


def with_registrations(register: str, statements: dict[str, str]) -> str:
    """Return the function `register` with these statements."""
    (function,) = (node for node in ast.parse(register).body if isinstance(node, ast.FunctionDef))
    first = function.body[0]
    docstring = [first] if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else []
    body = [statement for text in statements.values() for statement in ast.parse(text).body] or [ast.Pass()]
    function.body = [*docstring, *body]
    return ast.unparse(function)
