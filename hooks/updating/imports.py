"""Rewrite imports of moved modules and names in Python files, and the uses of what they import."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

Reference = tuple[str, str]
"""A module and a name in it."""


class Moves:
    """New places of modules and names."""

    def __init__(self, modules: Mapping[str, str | None], names: Mapping[str, str]) -> None:
        """Take the new places.

        Args:
            modules: new dotted name by old; None for a module that was removed or split.
            names: new `module:name` by old. An entry `a:f().x` with the value `b:g()` replaces `f(…).x` with `g(…)`.
        """
        self.modules = dict(modules)
        self.names: dict[Reference, Reference] = {}
        self.calls: dict[Reference, tuple[str, Reference]] = {}
        """The attribute, and the new name, by the old one."""
        for old, new in names.items():
            module, _, name = old.partition(":")
            called, _, attribute = name.partition("().")
            target = reference(new.removesuffix("()"))
            if attribute:
                self.calls[module, called] = (attribute, target)
            else:
                self.names[module, name] = target

    def module(self, name: str) -> str | None:
        """Return the new name of a module or package; None if it has several or none."""
        for prefix_name in _prefixes(name):
            if prefix_name in self.modules:
                new = self.modules[prefix_name]
                return None if new is None else new + name[len(prefix_name) :]
        return name

    def name(self, module: str, name: str) -> Reference | None:
        """Return the new place of a name of a module, or of a submodule; None if it has none."""
        if (module, name) in self.names:
            return self.names[module, name]
        if f"{module}.{name}" in self.modules:
            new = self.modules[f"{module}.{name}"]
            return None if new is None else (new.rpartition(".")[0], new.rpartition(".")[2])
        new = self.module(module)
        return None if new is None else (new, name)


def reference(text: str) -> Reference:
    """Parse `module:name`."""
    module, _, name = text.partition(":")
    return module, name


def _prefixes(dotted: str) -> Iterator[str]:
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


class ModuleContext(NamedTuple):
    """The package of a file, which relative imports refer to."""

    package: str
    """The package that its relative imports are relative to; empty for a script."""

    def absolute(self, level: int, module: str) -> str | None:
        """Return the absolute name of an import; None if it is relative beyond the top-level package."""
        parts = self.package.split(".") if self.package else []
        if not level or level > len(parts):
            return None if level else module
        return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])

    def relative(self, module: str) -> str:
        """Return the relative name of a module; its absolute name if it is in another top-level package."""
        own_parts, target_parts = self.package.split("."), module.split(".")
        common = 0
        while common < min(len(own_parts), len(target_parts)) and own_parts[common] == target_parts[common]:
            common += 1
        return "." * (len(own_parts) - common + 1) + ".".join(target_parts[common:]) if common else module


class Rewritten(NamedTuple):
    content: bytes
    unresolved: list[int]
    """Line numbers of imports that could not be rewritten."""


def rewrite(content: bytes, context: ModuleContext, moves: Moves) -> Rewritten:
    """Rewrite the imports of a Python file and the uses of what they import; all else stays byte for byte.

    A file with a syntax error stays unchanged.
    """
    if not (parsed := _parse(content, context, moves)):
        return Rewritten(content, [])
    file, encoding = parsed
    return Rewritten(file.rewritten().encode(encoding), sorted(file.unresolved))


def relocate(
    contents: Iterable[bytes], former: ModuleContext, context: ModuleContext, moves: Moves
) -> list[bytes] | None:
    """Return versions of a Python file of one package with their imports as they are in another one.

    Every line stays in its place, and equal lines stay equal, so that the versions can be compared as before. A
    statement of names that moved to different modules still has the former module; `rewrite` divides it.

    Returns:
        None if one version has a syntax error.
    """
    relocated = []
    for content in contents:
        if not (parsed := _parse(content, former, moves)):
            return None
        file, encoding = parsed
        relocated.append(file.relocated(context).encode(encoding))
    return relocated


def _parse(content: bytes, context: ModuleContext, moves: Moves) -> tuple[_File, str] | None:
    """Return a file's syntax and encoding; None if it has a syntax error."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _File(content.decode(encoding), context, moves), encoding
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return None


SOURCE = re.compile(rb"from((?:\s|\\)*)(.*?)((?:\s|\\)*)\bimport\b", re.DOTALL)
"""The start of a `from … import` statement; the second group is the module."""

WIDTH = 120
"""Maximum length of a line in characters; a longer import is written with one name a line."""


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class _Comments(NamedTuple):
    """The comments on an imported name."""

    above: tuple[str, ...] = ()
    behind: str = ""


@dataclass(eq=False)
class _Statement:
    """A `from … import` statement, and its rewritten form."""

    node: ast.ImportFrom
    module: str
    """The absolute name of the module that it imports from."""
    before: bytes
    """The text before it in its line."""
    after: bytes
    """The text after it in its line."""
    names: dict[str, _Comments] = field(default_factory=dict)
    """The imported names that it keeps, as in `name as binding`."""
    added: dict[str, dict[str, _Comments]] = field(default_factory=lambda: defaultdict(dict))
    """Names that have moved to another module, by module."""
    changed: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether its line has nothing else, not even a comment."""
        return not self.before.strip() and not self.after.strip()


class _File:
    """One file's syntax, and the edits that its imports need."""

    def __init__(self, source: str, context: ModuleContext, moves: Moves) -> None:
        self.context, self.moves = context, moves
        self.bytes = source.encode()
        self.starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", self.bytes))]
        self.newline = (re.search(r"\r\n|\r|\n", source) or ["\n"])[0]
        self.tree = ast.parse(source)
        self.unresolved: set[int] = set()
        self.edits: list[_Edit] = []
        self.parents: dict[ast.AST, ast.AST] = {}
        self.uses: dict[str, list[ast.Name]] = defaultdict(list)
        """The expressions that read a name."""
        self.bound: set[str] = set()
        """Names that are bound by something other than an import."""
        self.imported: dict[str, Reference] = {}
        """What each imported name refers to."""
        for node in ast.walk(self.tree):
            self.parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.uses[node.id].append(node)
            self.bound.update(_binds(node))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (module := context.absolute(node.level, node.module or "")):
                for alias in node.names:
                    meaning = moves.name(module, alias.name) or (module, alias.name)
                    self.imported[alias.asname or alias.name] = meaning
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name.partition(".")[0]] = ("", alias.name)

    def rewritten(self) -> str:
        """Return the source with all edits."""
        for run in _runs(self.tree):
            self._imports_from([node for node in run if isinstance(node, ast.ImportFrom)])
        self._plain_imports()
        return self._edited()

    def relocated(self, context: ModuleContext) -> str:
        """Return the source with the module of each `from … import` as it is in another package."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            start, end = self._range(node)
            module = self.context.absolute(node.level, node.module or "")
            source = SOURCE.match(self.bytes, start, end)
            if not module or not source:
                continue
            names = [alias.name for alias in node.names]
            places = [place for name in names if (place := self.moves.name(module, name))]
            together = [name for _, name in places] == names and len({new for new, _ in places}) == 1
            if together and node.lineno == node.end_lineno:
                module = places[0][0]
            else:  # the names of several lines are edited one by one
                module = self.moves.module(module) or module
            text = context.relative(module) if node.level else module
            text += " \\\n" * source[2].count(b"\n")
            after = "" if source[3] or text.endswith("\n") else " "
            self.edits.append(_Edit(*source.span(2), text + after))
        return self._edited()

    def _edited(self) -> str:
        text = self.bytes
        for edit in sorted(self.edits, reverse=True):
            text = text[: edit.start] + edit.text.encode() + text[edit.end :]
        return text.decode()

    # --- from module import name ---------------------------------------------------------------------------

    def _imports_from(self, nodes: Iterable[ast.ImportFrom]) -> None:
        """Rewrite consecutive statements; names of one module are merged into one statement."""
        statements = []
        for node in nodes:
            module = self.context.absolute(node.level, node.module or "")
            if module:
                start, end = self._range(node)
                line = self.starts[node.lineno - 1]
                stop = self.bytes.find(b"\n", end)
                after = self.bytes[end : stop if stop >= 0 else len(self.bytes)]
                statement = _Statement(node, module, self.bytes[line:start], after.rstrip(b"\r"))
                self._sort_names(statement)
                statements.append(statement)
        for statement in statements:
            for module in list(statement.added):
                keeping = [other for other in statements if other.module == module and other.names]
                gaining = [other for other in statements if module in other.added]
                target = [*keeping, *gaining][0]
                names = target.names if keeping else target.added[module]
                if target is not statement and target.is_alone and statement.is_alone and "*" not in names:
                    names |= statement.added.pop(module)
                    target.changed = True
        for statement in statements:
            if statement.changed:
                self._replace(statement)

    def _sort_names(self, statement: _Statement) -> None:
        """Sort the imported names into those that stay, those that move, and those that cannot be resolved."""
        node, module = statement.node, statement.module
        comments = self._comments(node)
        for alias in node.names:
            binding = alias.asname or alias.name
            uses: dict[str, Reference] | None = None
            if alias.name != "*":
                uses = self._of_calls((module, alias.name), binding)
                if uses is None and self.moves.modules.get(f"{module}.{alias.name}", "") is None:
                    uses = self._of_attributes(f"{module}.{alias.name}", binding)
            if uses is None:
                new = self.moves.name(module, alias.name)
                if new is None:
                    self.unresolved.add(alias.lineno)
                if new is None or new == (module, alias.name):
                    statement.names[_import_text(alias.name, binding)] = comments[alias]
                    continue
                uses = {binding: new}
            for name, (new_module, new_name) in uses.items():
                statement.added[new_module][_import_text(new_name, name)] = comments[alias]
            statement.changed = True

    def _comments(self, node: ast.ImportFrom) -> dict[ast.alias, _Comments]:
        """Return the comments above and after each name of a statement of several lines."""
        start, end = self._range(node)
        comments = dict.fromkeys(node.names, _Comments())
        for token in tokenize.tokenize(io.BytesIO(self.bytes[start:end]).readline):
            if token.type == tokenize.COMMENT:
                line = token.start[0] + node.lineno - 1
                before = [alias for alias in node.names if alias.lineno == line]
                below = [alias for alias in node.names if alias.lineno > line]
                alias = [*before[-1:], *below, node.names[-1]][0]
                above, behind = comments[alias]
                if before or not below:
                    comments[alias] = _Comments(above, f"{behind}  {token.string}".lstrip())
                else:
                    comments[alias] = _Comments((*above, token.string), behind)
        return comments

    def _of_calls(self, old: Reference, binding: str) -> dict[str, Reference] | None:
        """Rewrite the uses of a name that is only used as `binding(…).attribute`; None if there are other uses."""
        if old not in self.moves.calls or binding in self.bound or not self.uses[binding]:
            return None
        attribute, new = self.moves.calls[old]
        name = self._unused_name(new)
        edits = [self._call(use, attribute, name) for use in self.uses[binding]]
        if not name or not all(edits):
            return None
        self.edits += [edit for pair in edits for edit in pair]
        return {name: new}

    def _call(self, function: ast.expr, attribute: str, name: str) -> tuple[_Edit, ...]:
        """Return the edits that make `function(…).attribute` a call of `name`; none if it is another expression."""
        call = self.parents[function]
        outer = self.parents.get(call)
        if (
            self._position_is_exact(function)
            and isinstance(call, ast.Call)
            and call.func is function
            and isinstance(outer, ast.Attribute)
            and outer.attr == attribute
        ):
            return _Edit(*self._range(function), name), _Edit(self._range(call)[1], self._range(outer)[1], "")
        return ()

    def _of_attributes(self, module: str, binding: str) -> dict[str, Reference] | None:
        """Rewrite the uses of a module that was split; None if a name is used that has no new place."""
        names: dict[str, Reference] = {}
        edits: list[_Edit] = []
        for use in self.uses[binding]:
            parent = self.parents[use]
            if not isinstance(parent, ast.Attribute) or binding in self.bound or not self._position_is_exact(use):
                return None
            old = (module, parent.attr)
            if old in self.moves.calls:
                attribute, new = self.moves.calls[old]
                name = self._unused_name(new)
                pair = self._call(parent, attribute, name)
                if name and pair:
                    names[name] = new
                    edits += pair
                    continue
            if old not in self.moves.names:
                return None
            new = self.moves.names[old]
            if not (name := self._unused_name(new)):
                return None
            names[name] = new
            edits.append(_Edit(*self._range(parent), name))
        self.edits += edits
        return names or None

    def _unused_name(self, new: Reference) -> str:
        """Return a name for an import that nothing else in the file has; empty if there is none."""
        for name in (new[1], f"production_{new[1]}"):
            if name not in self.bound and self.imported.setdefault(name, new) == new:
                return name
        return ""

    def _replace(self, statement: _Statement) -> None:
        """Replace a statement with one statement for each module of its names."""
        node = statement.node
        start, end = self._range(node)
        statement.names |= statement.added.pop(statement.module, {})
        modules = {**({statement.module: statement.names} if statement.names else {}), **statement.added}
        if not modules:
            stop = self.bytes.find(b"\n", end)
            self.edits.append(_Edit(start - len(statement.before), stop + 1 if stop >= 0 else len(self.bytes), ""))
            return
        texts = sorted(self._text(statement, module, names) for module, names in modules.items())
        if statement.before.strip() or statement.after.lstrip().startswith(b";"):
            between = "; "
        else:
            between = statement.after.decode() + self.newline + statement.before.decode()
        self.edits.append(_Edit(start, end, between.join(texts)))

    def _text(self, statement: _Statement, module: str, names: Mapping[str, _Comments]) -> str:
        """Return an import of names, in the style of the original statement."""
        node = statement.node
        prefix = f"from {self.context.relative(module) if node.level else module} import"
        if [*names] == [_import_text(alias.name, alias.asname or alias.name) for alias in node.names]:
            start, end = self._range(node)
            return prefix + re.split(rb"\bimport\b", self.bytes[start:end], maxsplit=1)[1].decode()
        listed = sorted(names, key=_order)
        line = f"{prefix} {', '.join(listed)}"
        short = len(statement.before) + len(line) <= WIDTH and node.end_lineno == node.lineno
        if short or statement.before.strip() or listed == ["*"]:
            return line
        indent = statement.before.decode()
        rows = []
        for name in listed:
            above, behind = names[name]
            rows += [f"{indent}    {comment}" for comment in above]
            rows.append(f"{indent}    {name},{'  ' if behind else ''}{behind}")
        return self.newline.join([f"{prefix} (", *rows, f"{indent})"])

    # --- import module ---------------------------------------------------------------------------------------

    def _plain_imports(self) -> None:
        """Rewrite `import package.module` and its uses."""
        aliases = [alias for node in ast.walk(self.tree) if isinstance(node, ast.Import) for alias in node.names]
        for alias in aliases:
            if alias.asname:
                new = self.moves.module(alias.name)
                if new is None:
                    self.unresolved.add(alias.lineno)
                elif new != alias.name:
                    self.edits.append(_Edit(*self._range(alias), f"{new} as {alias.asname}"))
        for package in {alias.name.partition(".")[0] for alias in aliases if not alias.asname}:
            package_aliases = [a for a in aliases if not a.asname and a.name.partition(".")[0] == package]
            if any(_prefixed(prefix_name, package) for prefix_name in self.moves.modules):
                self._package(package, package_aliases)

    def _package(self, package: str, aliases: list[ast.alias]) -> None:
        """Rewrite the plain imports of one package, if every use of it can be resolved."""
        moving = [alias for alias in aliases if self._moves(alias)]
        edits: list[_Edit] = []
        needed: dict[str, set[str]] = defaultdict(set)
        failed = {use.lineno for use in self.uses[package] if not self._position_is_exact(use)}
        for use in self.uses[package]:
            nodes: list[ast.expr] = [use]
            while isinstance(parent := self.parents[nodes[-1]], ast.Attribute):
                nodes.append(parent)
            parts = [package, *(node.attr for node in nodes if isinstance(node, ast.Attribute))]
            followed = self._follow(parts)
            if followed is None:
                failed.add(use.lineno)
                continue
            old, module, name, length = followed
            needed[old].add(module)
            text = f"{module}.{name}" if name else module
            if text != ".".join(parts[:length]):
                edits.append(_Edit(self._range(use)[0], self._range(nodes[length - 1])[1], text))
        for alias in moving:
            new = self.moves.module(alias.name)
            modules = {new} if new else needed[alias.name]
            packages = {name.partition(".")[0] for name in modules} - {package}
            if not modules or packages & (self.bound | self.imported.keys()):
                failed.add(alias.lineno)
            edits.append(_Edit(*self._range(alias), ", ".join(sorted(modules))))
        if failed or (package in self.bound and edits):
            self.unresolved |= failed | {alias.lineno for alias in moving}
        else:
            self.edits += edits

    def _moves(self, alias: ast.alias) -> bool:
        return self.moves.module(alias.name) != alias.name

    def _follow(self, parts: list[str]) -> tuple[str, str, str, int] | None:
        """Return the old and new module of a dotted expression, a name in it, and the number of their parts."""
        for length in range(len(parts), 1, -1):
            old = (".".join(parts[: length - 1]), parts[length - 1])
            if old in self.moves.names:
                return old[0], *self.moves.names[old], length
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if module in self.moves.modules:
                new = self.moves.modules[module]
                return None if new is None else (module, new, "", length)
        return "", ".".join(parts), "", len(parts)

    # --- places ------------------------------------------------------------------------------------------------

    def _range(self, node: ast.expr | ast.stmt | ast.alias) -> tuple[int, int]:
        """Return the start and end of a node, in bytes from the start of the file."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[end_line - 1] + end_column

    def _position_is_exact(self, node: ast.expr) -> bool:
        """Return whether the recorded position of a name is right; before Python 3.12 those in f-strings are not."""
        start, end = self._range(node)
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return bool(name) and self.bytes[start:end].endswith(name.encode())


def _runs(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the runs of consecutive imports in each block."""
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                for imports, run in groupby(block, lambda stmt: isinstance(stmt, (ast.Import, ast.ImportFrom))):
                    if imports:
                        yield list(run)


def _binds(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds, other than by an import."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def _import_text(name: str, binding: str) -> str:
    return name if name == binding else f"{name} as {binding}"


def _order(text: str) -> tuple[int, str]:
    """Return the sort key of an imported name: constants, classes, then the rest, as Ruff sorts."""
    name = text.partition(" ")[0]
    return 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2, text


def _prefixed(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(f"{package}.")
