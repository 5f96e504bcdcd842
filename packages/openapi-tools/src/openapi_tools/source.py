"""Writes the models and the tools as Python. Every text of the document comes through `names`."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .names import MAX_TITLE, docstring, literal, one_line, short_literal
from .operations import Body, Operation, Parameter
from .schemas import Choice, ListOf, Model, Nothing, Property, Scalar, Type, members, models_in, nullable

ANNOTATIONS = {"GET": "READ_ONLY", "HEAD": "READ_ONLY", "OPTIONS": "READ_ONLY", "PUT": "REPLACES", "DELETE": "REPLACES"}

IMPORTS: dict[str, tuple[str, ...]] = {
    "typing": ("Annotated", "Any", "Literal"),
    "mcp.server.mcpserver": ("Context", "MCPServer"),
    "pydantic": ("ConfigDict", "Field", "JsonValue", "TypeAdapter"),
}
OWN = (
    "CHANGES",
    "READ_ONLY",
    "REPLACES",
    "ApiModel",
    "Binary",
    "Done",
    "add",
    "as_binary",
    "as_done",
    "as_json",
    "as_json_or_done",
    "as_text",
    "binary_body",
    "call",
    "deep",
    "form",
    "form_body",
    "in_json",
    "json_body",
    "multipart_body",
    "text_body",
    "wire",
)
"""What `_api` has for these modules, in the order of a sorted import."""


def models_module(models: list[Model], title: str) -> str:
    """The source of `_models.py`."""
    head = docstring(f"What the API of {title} takes and answers, seeded from its OpenAPI document.", "")
    body = "\n\n".join(_class(model) for model in in_order(models))
    return f"{head}\nfrom __future__ import annotations\n\n{_imports(body, ('ApiModel',))}\n\n{body}"


def tools_module(operations: list[Operation], about: str) -> str:
    """The source of a module with these tools."""
    parts = [part for operation in operations for part in (_adapter(operation), _function(operation)) if part]
    registered = "".join(
        f"    add(server, {each.name}, {short_literal(each.title)}, {ANNOTATIONS.get(each.method, 'CHANGES')})\n"
        for each in operations
    )
    register = (
        "def register(server: MCPServer[Any]) -> None:\n"
        '    """Adds these tools to `server`; called once, before it serves."""\n' + registered
    )
    body = "\n\n".join([*parts, register])
    space = "\n" if parts[0].startswith("async def") else ""
    return f"{docstring(about, '')}\n{_imports(body, OWN)}\n{space}{body}"


def module_title(group: str, title: str) -> str:
    return f"Tools for {one_line(group, MAX_TITLE)} of {title}, seeded from its OpenAPI document."


def in_order(models: list[Model]) -> list[Model]:
    """The models, each after those that it is made of where there is no circle."""
    placed: dict[Model, None] = {}
    entered: set[Model] = set()
    for first in models:
        ahead = [first]
        while ahead:
            model = ahead[-1]
            if model in placed:
                ahead.pop()
                continue
            if model in entered:
                placed[model] = None
                ahead.pop()
                continue
            entered.add(model)
            inner = (each for prop in model.properties for each in models_in(prop.type))
            ahead += [each for each in inner if each not in entered]
    return list(placed)


def reachable(found: Iterable[Type]) -> set[Model]:
    """Every model that these types are made of."""
    reached: set[Model] = set()
    ahead = [model for each in found for model in models_in(each)]
    while ahead:
        model = ahead.pop()
        if model not in reached:
            reached.add(model)
            ahead += [each for prop in model.properties for each in models_in(prop.type)]
    return reached


def _class(model: Model) -> str:
    lines = [f"class {model.name}(ApiModel):\n"]
    if model.description:
        lines.append(docstring(model.description, "    "))
    if model.closed:
        lines.append('    model_config = ConfigDict(extra="forbid")\n')
    if len(lines) > 1:
        lines.append("\n")
    lines += [f"    {_field(each)}\n" for each in model.properties]
    if not model.properties and len(lines) == 1:
        lines.append("    pass\n")
    return "".join(lines)


def _field(each: Property) -> str:
    arguments = []
    if each.wire != each.name:
        arguments.append(f"alias={literal(each.wire)}")
    if each.description:
        arguments.append(f"description={literal(each.description)}")
    default = "" if each.required else " = None"
    return f"{each.name}: {_annotated(each.type, arguments, optional=not each.required)}{default}"


def _annotated(found: Type, arguments: list[str], *, optional: bool, prefix: str = "") -> str:
    """The annotation with these arguments of `Field`, to which a plain type adds its limits."""
    if isinstance(found, Scalar | ListOf):
        limits = [f"{name}={literal(value)}" for name, value in found.limits]
        if isinstance(found, Scalar) and found.format:
            limits.append(f'json_schema_extra={{"format": {short_literal(found.format)}}}')
        base = found.kind if isinstance(found, Scalar) else f"list[{found.item.source(prefix)}]"
        arguments = [*arguments, *limits]
    else:
        base = found.source(prefix)
    if optional and base != "Any" and not nullable(found):
        base += " | None"
    return f"Annotated[{base}, Field({', '.join(arguments)})]" if arguments else base


def _adapter(operation: Operation) -> str:
    """The constant that reads an answer which is no model."""
    if not _wants_adapter(operation):
        return ""
    source = _answered(operation.answer.type)
    return f"{_adapter_name(operation)}: TypeAdapter[{source}] = TypeAdapter({source})\n"


def _wants_adapter(operation: Operation) -> bool:
    return operation.answer.kind == "json" and not isinstance(operation.answer.type, Model)


def _adapter_name(operation: Operation) -> str:
    return f"{operation.name.rstrip('_').upper()}_ANSWER"


def _function(operation: Operation) -> str:
    parameters = sorted(operation.parameters, key=lambda each: not each.required)
    arguments = [_argument(each.name, each.type, each.description, each.required) for each in parameters]
    if operation.body is not None:
        body = operation.body
        written = _argument(body.name, body.type, body.description, body.required)
        arguments.insert(sum(each.required for each in parameters) if body.required else len(arguments), written)
    signature = "".join(
        f"    {argument},\n" for argument in ["ctx: Context", *(["*"] if arguments else []), *arguments]
    )
    returns, result = _result(operation)
    return (
        f"async def {operation.name}(\n{signature}) -> {returns}:\n"
        + docstring(operation.description, "    ")
        + "    return await call(\n"
        + "".join(f"        {part},\n" for part in _call(operation, result))
        + "    )\n"
    )


def _argument(name: str, found: Type, description: str, required: bool) -> str:
    arguments = [f"description={literal(description)}"] if description else []
    default = "" if required else " = None"
    return f"{name}: {_annotated(found, arguments, optional=not required, prefix='models.')}{default}"


def _result(operation: Operation) -> tuple[str, str]:
    """The annotation of what the tool returns, and what makes it of the answer."""
    answer = operation.answer
    if answer.kind == "text":
        return "str", "as_text"
    if answer.kind == "binary":
        return "Binary", "as_binary"
    if answer.kind == "nothing":
        return "Done", "as_done"
    source = _answered(answer.type)
    if isinstance(answer.type, Model):
        validate = f"models.{answer.type.name}.model_validate"
    else:
        validate = f"{_adapter_name(operation)}.validate_python"
    if answer.may_be_empty:
        return f"{source} | Done", f"as_json_or_done({validate})"
    return source, f"as_json({validate})"


def _answered(found: Type) -> str:
    """The annotation of an answer; what returns Any would have no structured content (MCP SDK 2.3)."""
    source = found.source("models.")
    return "JsonValue" if source == "Any" else source


def _call(operation: Operation, result: str) -> list[str]:
    parts = ["ctx", result, literal(operation.method), short_literal(operation.path)]
    if path := operation.of("path"):
        values = ", ".join(f"{literal(each.name)}: {_path_value(each)}" for each in path)
        parts.append(f"path_params={{{values}}}")
    if query := operation.of("query"):
        parts.append(f"query=[{', '.join(f'*{query_part(each)}' for each in query)}]")
    if headers := operation.of("header"):
        parts.append(f"headers={{{', '.join(f'{literal(each.wire)}: {each.name}' for each in headers)}}}")
    if cookies := operation.of("cookie"):
        parts.append(f"cookies={{{', '.join(f'{literal(each.wire)}: {each.name}' for each in cookies)}}}")
    if operation.body is not None:
        parts.append(f"body={_body(operation.body)}")
    if operation.answer.media_type:
        parts.append(f"accept={literal(operation.answer.media_type)}")
    return parts


def _path_value(each: Parameter) -> str:
    return f"wire({each.name})"


def query_part(each: Parameter) -> str:
    name = short_literal(each.wire)
    if each.in_json:
        return f"in_json({name}, {each.name})"
    if each.style == "deepObject":
        return f"deep({name}, {each.name})"
    options = ""
    if not each.explode and not _is_plain(each.type):
        options += ", explode=False"
    if each.reserved:
        options += ", reserved=True"
    if each.style in ("spaceDelimited", "pipeDelimited") and not each.explode:
        options += f', separator="{"%20" if each.style == "spaceDelimited" else "%7C"}"'
    return f"form({name}, {each.name}{options})"


def _is_plain(found: Type) -> bool:
    return all(isinstance(each, Scalar | Choice | Nothing) for each in members(found))


def _body(body: Body) -> str:
    match body.kind:
        case "json":
            media = "" if body.media_type == "application/json" else f", {literal(body.media_type)}"
            return f"json_body({body.name}{media})"
        case "form":
            return f"form_body({body.name}{f', {literal(body.styles)}' if body.styles else ''})"
        case "multipart":
            return f"multipart_body({body.name}{f', {literal(body.files)}' if body.files else ''})"
    return f"{body.kind}_body({body.name}, {literal(body.media_type)})"


def _imports(body: str, own: tuple[str, ...]) -> str:
    """The imports of what `body` uses, sorted as the linter has them."""
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    lines: list[str] = []
    for module, names in IMPORTS.items():
        if kept := [name for name in names if name in used]:
            if module == "mcp.server.mcpserver" and lines:
                lines.append("")
            if module == "pydantic" and lines and not any("mcp.server" in line for line in lines):
                lines.append("")
            lines.append(f"from {module} import {', '.join(kept)}")
    if lines:
        lines.append("")
    if "models" in used and own is OWN:
        lines.append("from . import _models as models")
    if kept := [name for name in own if name in used]:
        listed = "".join(f"    {name},\n" for name in kept)
        lines.append(f"from ._api import (\n{listed})" if len(kept) > 6 else f"from ._api import {', '.join(kept)}")
    return "\n".join(lines) + "\n"
