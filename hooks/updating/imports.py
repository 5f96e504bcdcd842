"""Imports of modules and names that have moved, rewritten in Python files by their syntax, and what else names them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

Reference = tuple[str, str]
"""A module and a name in it."""


class Moves:
    """Where modules and names are now."""

    def __init__(self, modules: Mapping[str, str | None], names: Mapping[str, str]) -> None:
        """Take dotted modules, None for one without a single new place, and `module:name` by old `module:name`.

        `module:name().attribute` by `module:name()` means that the attribute of what the old name returned for an
        argument is what the new name returns for it.
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
        """The new name of a module or package; None where it has several or none."""
        for known in _prefixes(name):
            if known in self.modules:
                new = self.modules[known]
                return None if new is None else new + name[len(known) :]
        return name

    def name(self, module: str, name: str) -> Reference | None:
        """Where a name of a module, or a submodule, is now."""
        if (module, name) in self.names:
            return self.names[module, name]
        if f"{module}.{name}" in self.modules:
            new = self.modules[f"{module}.{name}"]
            return None if new is None else (new.rpartition(".")[0], new.rpartition(".")[2])
        new = self.module(module)
        return None if new is None else (new, name)


def reference(text: str) -> Reference:
    module, _, name = text.partition(":")
    return module, name


def _prefixes(dotted: str) -> Iterator[str]:
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


class Here(NamedTuple):
    """The place of a file among modules."""

    package: str
    """The package that its relative imports begin in; empty for a script."""
    former: str
    """The same where the file was before the update, which is what its owner's imports mean."""
    exists: Callable[[str], bool]
    """Whether there is a module now."""

    def absolute(self, level: int, module: str) -> str | None:
        """What a relative import means; None where it leads out of all packages."""
        if not level:
            return module
        meanings = [meant for package in (self.package, self.former) if (meant := _climb(package, level, module))]
        return next(filter(self.exists, meanings), meanings[-1] if meanings else None)

    def relative(self, module: str) -> str:
        """The import of a module relative to the package of the file, or the module where there is no such way."""
        ours, theirs = self.package.split("."), module.split(".")
        common = 0
        while common < min(len(ours), len(theirs)) and ours[common] == theirs[common]:
            common += 1
        return "." * (len(ours) - common + 1) + ".".join(theirs[common:]) if common else module


def _climb(package: str, level: int, module: str) -> str | None:
    parts = package.split(".") if package else []
    if level > len(parts):
        return None
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])


class Rewritten(NamedTuple):
    content: bytes
    left: list[int]
    """The numbers of lines with an import that could not be rewritten."""


def rewrite(content: bytes, here: Here, moves: Moves) -> Rewritten:
    """Rewrite the imports of a Python file and what uses them; all else stays byte for byte.

    A file that is no Python is left as it is.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = _File(content.decode(encoding), here, moves)
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return Rewritten(content, [])
    return Rewritten(file.rewritten().encode(encoding), sorted(file.left))


WIDTH = 120
"""The length of a line from which on names stand one a line."""


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class _Comments(NamedTuple):
    """What is written of an imported name."""

    above: tuple[str, ...] = ()
    behind: str = ""


@dataclass(eq=False)
class _Statement:
    """An import from a module, and what becomes of it."""

    node: ast.ImportFrom
    module: str
    """What is imported from, as a dotted name."""
    before: bytes
    """What stands before it in its line."""
    after: bytes
    """What stands behind it."""
    names: dict[str, _Comments] = field(default_factory=dict)
    """The imported names that it keeps, as in `name as binding`."""
    added: dict[str, dict[str, _Comments]] = field(default_factory=lambda: defaultdict(dict))
    """Names that are another module's now, by module."""
    changed: bool = False

    @property
    def alone(self) -> bool:
        """Whether it has its line for itself, without a comment."""
        return not self.before.strip() and not self.after.strip()


class _File:
    """One file's syntax, and the edits that its imports need."""

    def __init__(self, source: str, here: Here, moves: Moves) -> None:
        self.here, self.moves = here, moves
        self.bytes = source.encode()
        self.starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", self.bytes))]
        self.newline = (re.search(r"\r\n|\r|\n", source) or ["\n"])[0]
        self.tree = ast.parse(source)
        self.left: set[int] = set()
        self.edits: list[_Edit] = []
        self.parents: dict[ast.AST, ast.AST] = {}
        self.uses: dict[str, list[ast.Name]] = defaultdict(list)
        """Where a name is read."""
        self.bound: set[str] = set()
        """Names that something else than an import binds."""
        self.imported: dict[str, Reference] = {}
        """What each name means that an import from a module binds."""
        for node in ast.walk(self.tree):
            self.parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.uses[node.id].append(node)
            self.bound.update(_binds(node))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (module := here.absolute(node.level, node.module or "")):
                for alias in node.names:
                    meant = moves.name(module, alias.name) or (module, alias.name)
                    self.imported[alias.asname or alias.name] = meant
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name.partition(".")[0]] = ("", alias.name)

    def rewritten(self) -> str:
        """The source after all edits."""
        for run in _runs(self.tree):
            self._imports_from([node for node in run if isinstance(node, ast.ImportFrom)])
        self._plain_imports()
        text = self.bytes
        for edit in sorted(self.edits, reverse=True):
            text = text[: edit.start] + edit.text.encode() + text[edit.end :]
        return text.decode()

    # --- from module import name ---------------------------------------------------------------------------

    def _imports_from(self, nodes: Iterable[ast.ImportFrom]) -> None:
        """Rewrite statements that follow each other; names that come from one module then come in one statement."""
        statements = []
        for node in nodes:
            module = self.here.absolute(node.level, node.module or "")
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
                kept = [other for other in statements if other.module == module and other.names]
                gained = [other for other in statements if module in other.added]
                home = [*kept, *gained][0]
                names = home.names if kept else home.added[module]
                if home is not statement and home.alone and statement.alone and "*" not in names:
                    names |= statement.added.pop(module)
                    home.changed = True
        for statement in statements:
            if statement.changed:
                self._replace(statement)

    def _sort_names(self, statement: _Statement) -> None:
        """Say of each imported name whether it stays, moves or cannot be followed."""
        node, module = statement.node, statement.module
        comments = self._comments(node)
        stands = not node.level or module == _climb(self.here.package, node.level, node.module or "")
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
                    self.left.add(alias.lineno)
                if new is None or (new == (module, alias.name) and stands):
                    statement.names[_named(alias.name, binding)] = comments[alias]
                    continue
                uses = {binding: new}
            for name, (new_module, new_name) in uses.items():
                statement.added[new_module][_named(new_name, name)] = comments[alias]
            statement.changed = True

    def _comments(self, node: ast.ImportFrom) -> dict[ast.alias, _Comments]:
        """What is written above and behind each name of a statement of several lines."""
        start, end = self._range(node)
        found = dict.fromkeys(node.names, _Comments())
        for token in tokenize.tokenize(io.BytesIO(self.bytes[start:end]).readline):
            if token.type == tokenize.COMMENT:
                line = token.start[0] + node.lineno - 1
                before = [alias for alias in node.names if alias.lineno == line]
                below = [alias for alias in node.names if alias.lineno > line]
                alias = [*before[-1:], *below, node.names[-1]][0]
                above, behind = found[alias]
                if before or not below:
                    found[alias] = _Comments(above, f"{behind}  {token.string}".lstrip())
                else:
                    found[alias] = _Comments((*above, token.string), behind)
        return found

    def _of_calls(self, old: Reference, binding: str) -> dict[str, Reference] | None:
        """Follow what is used only as `binding(…).attribute`; None where it is not, or has not moved so."""
        if old not in self.moves.calls or binding in self.bound or not self.uses[binding]:
            return None
        attribute, new = self.moves.calls[old]
        name = self._free(new)
        edits = [self._call(use, attribute, name) for use in self.uses[binding]]
        if not name or not all(edits):
            return None
        self.edits += [edit for pair in edits for edit in pair]
        return {name: new}

    def _call(self, function: ast.expr, attribute: str, name: str) -> tuple[_Edit, ...]:
        """Make `function(…).attribute` a call of `name`; nothing where it is something else."""
        call = self.parents[function]
        outer = self.parents.get(call)
        if (
            self._sound(function)
            and isinstance(call, ast.Call)
            and call.func is function
            and isinstance(outer, ast.Attribute)
            and outer.attr == attribute
        ):
            return _Edit(*self._range(function), name), _Edit(self._range(call)[1], self._range(outer)[1], "")
        return ()

    def _of_attributes(self, module: str, binding: str) -> dict[str, Reference] | None:
        """Follow a module without one new place, of which only names are used that have one; None where others are."""
        found: dict[str, Reference] = {}
        edits: list[_Edit] = []
        for use in self.uses[binding]:
            parent = self.parents[use]
            if not isinstance(parent, ast.Attribute) or binding in self.bound or not self._sound(use):
                return None
            old = (module, parent.attr)
            if old in self.moves.calls:
                attribute, new = self.moves.calls[old]
                name = self._free(new)
                pair = self._call(parent, attribute, name)
                if name and pair:
                    found[name] = new
                    edits += pair
                    continue
            if old not in self.moves.names:
                return None
            new = self.moves.names[old]
            if not (name := self._free(new)):
                return None
            found[name] = new
            edits.append(_Edit(*self._range(parent), name))
        self.edits += edits
        return found or None

    def _free(self, new: Reference) -> str:
        """A name for what is imported that means nothing else in the file; empty where there is none."""
        for name in (new[1], f"production_{new[1]}"):
            if name not in self.bound and self.imported.setdefault(name, new) == new:
                return name
        return ""

    def _replace(self, statement: _Statement) -> None:
        """Write a statement anew, with those that its names need besides."""
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
        """An import of names, in the style of the statement that it comes from."""
        node = statement.node
        begin = f"from {self.here.relative(module) if node.level else module} import"
        if [*names] == [_named(alias.name, alias.asname or alias.name) for alias in node.names]:
            start, end = self._range(node)
            return begin + re.split(rb"\bimport\b", self.bytes[start:end], maxsplit=1)[1].decode()
        listed = sorted(names, key=_order)
        line = f"{begin} {', '.join(listed)}"
        short = len(statement.before) + len(line) <= WIDTH and node.end_lineno == node.lineno
        if short or statement.before.strip() or listed == ["*"]:
            return line
        indent = statement.before.decode()
        rows = []
        for name in listed:
            above, behind = names[name]
            rows += [f"{indent}    {comment}" for comment in above]
            rows.append(f"{indent}    {name},{'  ' if behind else ''}{behind}")
        return self.newline.join([f"{begin} (", *rows, f"{indent})"])

    # --- import module ---------------------------------------------------------------------------------------

    def _plain_imports(self) -> None:
        """Rewrite `import package.module` and what begins with it."""
        aliases = [alias for node in ast.walk(self.tree) if isinstance(node, ast.Import) for alias in node.names]
        for alias in aliases:
            if alias.asname:
                new = self.moves.module(alias.name)
                if new is None:
                    self.left.add(alias.lineno)
                elif new != alias.name:
                    self.edits.append(_Edit(*self._range(alias), f"{new} as {alias.asname}"))
        for package in {alias.name.partition(".")[0] for alias in aliases if not alias.asname}:
            of_package = [a for a in aliases if not a.asname and a.name.partition(".")[0] == package]
            if any(_prefixed(known, package) for known in self.moves.modules):
                self._package(package, of_package)

    def _package(self, package: str, aliases: list[ast.alias]) -> None:
        """Rewrite the plain imports of one package, if everything that is used of it can be followed."""
        moving = [alias for alias in aliases if self._moves(alias)]
        edits: list[_Edit] = []
        needed: dict[str, set[str]] = defaultdict(set)
        failed = {use.lineno for use in self.uses[package] if not self._sound(use)}
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
            self.left |= failed | {alias.lineno for alias in moving}
        else:
            self.edits += edits

    def _moves(self, alias: ast.alias) -> bool:
        return self.moves.module(alias.name) != alias.name

    def _follow(self, parts: list[str]) -> tuple[str, str, str, int] | None:
        """The old and new module of a dotted expression, a name in it, and how many parts are those."""
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
        """Where a node begins and ends, in bytes."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[end_line - 1] + end_column

    def _sound(self, node: ast.expr) -> bool:
        """Whether a name is where it is said to be; before Python 3.12 those of f-strings are not."""
        start, end = self._range(node)
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return bool(name) and self.bytes[start:end].endswith(name.encode())


def _runs(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Imports that follow each other in one block."""
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                for imports, run in groupby(block, lambda stmt: isinstance(stmt, (ast.Import, ast.ImportFrom))):
                    if imports:
                        yield list(run)


def _binds(node: ast.AST) -> Iterator[str]:
    """The names that a node binds, other than by an import."""
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


def _named(name: str, binding: str) -> str:
    return name if name == binding else f"{name} as {binding}"


def _order(text: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as Ruff sorts imported names."""
    name = text.partition(" ")[0]
    return 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2, text


def _prefixed(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(f"{package}.")
