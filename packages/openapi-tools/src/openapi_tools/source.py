"""The Python source of the models and tools. Every text of the document passes through `text` or `identifiers`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from .operations import Parameter, RequestBody, Tool
from .python_types import (
    EnumType,
    ListType,
    Model,
    NullType,
    Property,
    ScalarType,
    Type,
    accepts_null,
    models_in,
    union_options,
)
from .text import MAX_TITLE, docstring, grouped_literal, literal, single_line

TOOL_ANNOTATIONS = {
    "GET": "READ_ONLY",
    "HEAD": "READ_ONLY",
    "OPTIONS": "READ_ONLY",
    "PUT": "REPLACES",
    "DELETE": "REPLACES",
}
"""The annotations in `_api` of the tools of each method; of the other methods `CHANGES`."""

LIBRARY_IMPORTS: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (
    (("typing", ("Annotated", "Any", "Literal")),),
    (
        ("mcp.server.mcpserver", ("Context", "MCPServer")),
        ("pydantic", ("ConfigDict", "Field", "JsonValue", "TypeAdapter")),
    ),
)
"""Names that the generated modules import, by module: the standard library's, then those of others."""

API_NAMES = (
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
"""Names that the generated modules import from `_api`, in the order of a sorted import."""

MODELS_IMPORT = "from . import _models as models\n"

MAX_NAMES_ON_LINE = 6


def models_module(models: Sequence[Model], api_title: str) -> str:
    """Return the source of `_models.py`."""
    head = docstring(f"Request and response models of {api_title}, generated from its OpenAPI document.", "")
    body = "\n\n".join(_class(model) for model in definition_order(models))
    imports = _imports(body, ("ApiModel",))
    return f"{head}\nfrom __future__ import annotations\n\n{imports}\n\n{body}"


def tools_module(tools: Sequence[Tool], title: str) -> str:
    """Return the source of a module with these tools."""
    definitions = [part for tool in tools for part in (_type_adapter(tool), _function(tool)) if part]
    body = "\n\n".join([*definitions, _register_function(tools)])
    blank_line = "\n" if definitions[0].startswith("async def") else ""
    return f"{docstring(title, '')}\n{_imports(body, API_NAMES, MODELS_IMPORT)}\n{blank_line}{body}"


def module_title(group: str, api_title: str) -> str:
    return f"Tools for {single_line(group, MAX_TITLE)} of {api_title}, generated from its OpenAPI document."


def definition_order(models: Sequence[Model]) -> list[Model]:
    """Return the models, each after those that it refers to, as far as they are not recursive."""
    ordered: dict[Model, None] = {}
    entered: set[Model] = set()
    for root in models:
        stack = [root]
        while stack:
            model = stack[-1]
            if model in ordered:
                stack.pop()
            elif model in entered:
                ordered[model] = None
                stack.pop()
            else:
                entered.add(model)
                stack += [reference for reference in model.referenced_models() if reference not in entered]
    return list(ordered)


def reachable_models(types: Iterable[Type]) -> set[Model]:
    """Return the models that these types refer to, directly or through other models."""
    reached: set[Model] = set()
    stack = [model for type_ in types for model in models_in(type_)]
    while stack:
        model = stack.pop()
        if model not in reached:
            reached.add(model)
            stack += model.referenced_models()
    return reached


# --- Models ------------------------------------------------------------------------------------------------------


def _class(model: Model) -> str:
    lines = [f"class {model.name}(ApiModel):\n"]
    if model.description:
        lines.append(docstring(model.description, "    "))
    if model.forbids_extra:
        lines.append('    model_config = ConfigDict(extra="forbid")\n')
    if len(lines) > 1:
        lines.append("\n")
    lines += [f"    {_field(prop)}\n" for prop in model.properties]
    if not model.properties and len(lines) == 1:
        lines.append("    pass\n")
    return "".join(lines)


def _field(prop: Property) -> str:
    arguments = []
    if prop.api_name != prop.name:
        arguments.append(f"alias={literal(prop.api_name)}")
    if prop.description:
        arguments.append(f"description={literal(prop.description)}")
    return f"{prop.name}: {_annotated(prop.type, arguments, required=prop.required)}"


def _annotated(type_: Type, arguments: list[str], *, required: bool, prefix: str = "") -> str:
    """Return the annotation with these arguments of `Field` and the type's constraints, and the default None."""
    if isinstance(type_, ScalarType | ListType):
        constraints = [f"{name}={literal(value)}" for name, value in type_.constraints]
        if isinstance(type_, ScalarType) and type_.format:
            constraints.append(f'json_schema_extra={{"format": {grouped_literal(type_.format)}}}')
        base = type_.kind if isinstance(type_, ScalarType) else f"list[{type_.item.annotation(prefix)}]"
        arguments = [*arguments, *constraints]
    else:
        base = type_.annotation(prefix)
    if not required and base != "Any" and not accepts_null(type_):
        base += " | None"
    annotation = f"Annotated[{base}, Field({', '.join(arguments)})]" if arguments else base
    return annotation if required else f"{annotation} = None"


# --- Tools -------------------------------------------------------------------------------------------------------


def _type_adapter(tool: Tool) -> str:
    """Return the constant that validates a response which is no model, "" where the tool needs none."""
    if tool.response.kind != "json" or isinstance(tool.response.type, Model):
        return ""
    annotation = _result_annotation(tool.response.type)
    return f"{_type_adapter_name(tool)}: TypeAdapter[{annotation}] = TypeAdapter({annotation})\n"


def _type_adapter_name(tool: Tool) -> str:
    return f"{tool.name.rstrip('_').upper()}_ANSWER"


def _function(tool: Tool) -> str:
    arguments = ["ctx: Context", *_arguments(tool)]
    if len(arguments) > 1:
        arguments.insert(1, "*")
    returns, reader = _result(tool)
    return (
        f"async def {tool.name}(\n"
        + "".join(f"    {argument},\n" for argument in arguments)
        + f") -> {returns}:\n"
        + docstring(tool.description, "    ")
        + "    return await call(\n"
        + "".join(f"        {argument},\n" for argument in _call_arguments(tool, reader))
        + "    )\n"
    )


def _arguments(tool: Tool) -> list[str]:
    """Return the tool's arguments: the required parameters, then the optional ones, with the body after its kind."""
    arguments: list[Parameter | RequestBody] = [*tool.parameters, *([tool.body] if tool.body is not None else [])]
    return [_argument(each) for each in sorted(arguments, key=lambda each: not each.required)]


def _argument(parameter: Parameter | RequestBody) -> str:
    arguments = [f"description={literal(parameter.description)}"] if parameter.description else []
    annotation = _annotated(parameter.type, arguments, required=parameter.required, prefix="models.")
    return f"{parameter.name}: {annotation}"


def _result(tool: Tool) -> tuple[str, str]:
    """Return the annotation of the tool's result and the function that reads it from the response."""
    response = tool.response
    if response.kind == "text":
        return "str", "as_text"
    if response.kind == "binary":
        return "Binary", "as_binary"
    if response.kind == "nothing":
        return "Done", "as_done"
    annotation = _result_annotation(response.type)
    if isinstance(response.type, Model):
        validate = f"models.{response.type.name}.model_validate"
    else:
        validate = f"{_type_adapter_name(tool)}.validate_python"
    if response.may_be_empty:
        return f"{annotation} | Done", f"as_json_or_done({validate})"
    return annotation, f"as_json({validate})"


def _result_annotation(type_: Type) -> str:
    """Return the annotation of a result; a tool that returns Any has no structured content (MCP SDK 2.3)."""
    annotation = type_.annotation("models.")
    return "JsonValue" if annotation == "Any" else annotation


def _call_arguments(tool: Tool, reader: str) -> list[str]:
    """Return the arguments of `_api.call`."""
    arguments = ["ctx", reader, literal(tool.method), grouped_literal(tool.path)]
    if path := tool.parameters_in("path"):
        values = ", ".join(f"{literal(parameter.name)}: wire({parameter.name})" for parameter in path)
        arguments.append(f"path_params={{{values}}}")
    if query := tool.parameters_in("query"):
        arguments.append(f"query=[{', '.join(f'*{_query_pairs(parameter)}' for parameter in query)}]")
    if headers := tool.parameters_in("header"):
        arguments.append(f"headers={_by_api_name(headers)}")
    if cookies := tool.parameters_in("cookie"):
        arguments.append(f"cookies={_by_api_name(cookies)}")
    if tool.body is not None:
        arguments.append(f"body={_body(tool.body)}")
    if tool.response.accept:
        arguments.append(f"accept={literal(tool.response.accept)}")
    return arguments


def _by_api_name(parameters: Sequence[Parameter]) -> str:
    return "{" + ", ".join(f"{literal(parameter.api_name)}: {parameter.name}" for parameter in parameters) + "}"


def _query_pairs(parameter: Parameter) -> str:
    """Return the call that makes the pairs of a query parameter."""
    name = grouped_literal(parameter.api_name)
    if parameter.is_json:
        return f"in_json({name}, {parameter.name})"
    if parameter.style == "deepObject":
        return f"deep({name}, {parameter.name})"
    options = ""
    if not parameter.explode and not _is_single_value(parameter.type):
        options += ", explode=False"
    if parameter.allow_reserved:
        options += ", reserved=True"
    if parameter.style in ("spaceDelimited", "pipeDelimited") and not parameter.explode:
        options += f', separator="{"%20" if parameter.style == "spaceDelimited" else "%7C"}"'
    return f"form({name}, {parameter.name}{options})"


def _is_single_value(type_: Type) -> bool:
    return all(isinstance(option, ScalarType | EnumType | NullType) for option in union_options(type_))


def _body(body: RequestBody) -> str:
    """Return the call that makes the request's body."""
    match body.kind:
        case "json":
            media_type = "" if body.media_type == "application/json" else f", {literal(body.media_type)}"
            return f"json_body({body.name}{media_type})"
        case "form":
            styles = f", {literal(body.property_styles)}" if body.property_styles else ""
            return f"form_body({body.name}{styles})"
        case "multipart":
            files = f", {literal(body.files)}" if body.files else ""
            return f"multipart_body({body.name}{files})"
    return f"{body.kind}_body({body.name}, {literal(body.media_type)})"


def _register_function(tools: Sequence[Tool]) -> str:
    lines = [
        "def register(server: MCPServer[Any]) -> None:\n",
        '    """Register these tools; called once, before the server starts."""\n',
    ]
    for tool in tools:
        annotations = TOOL_ANNOTATIONS.get(tool.method, "CHANGES")
        lines.append(f"    add(server, {tool.name}, {grouped_literal(tool.title)}, {annotations})\n")
    return "".join(lines)


# --- Imports -----------------------------------------------------------------------------------------------------


def _imports(body: str, api_names: Sequence[str], models_import: str = "") -> str:
    """Return the imports of the names that `body` uses, sorted as the linter wants them.

    Args:
        body: The source without its imports.
        api_names: What the module may import from `_api`; a model's field may have the name of a function there.
        models_import: The import of the models, for a module that may use them.
    """
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    sections = ["".join(_import(module, names, used) for module, names in section) for section in LIBRARY_IMPORTS]
    own = models_import if "models" in used else ""
    used_api_names = [name for name in api_names if name in used]
    if len(used_api_names) > MAX_NAMES_ON_LINE:
        own += "from ._api import (\n" + "".join(f"    {name},\n" for name in used_api_names) + ")\n"
    elif used_api_names:
        own += f"from ._api import {', '.join(used_api_names)}\n"
    return "\n".join(section for section in [*sections, own] if section)


def _import(module: str, names: Sequence[str], used: set[str]) -> str:
    used_names = [name for name in names if name in used]
    return f"from {module} import {', '.join(used_names)}\n" if used_names else ""
