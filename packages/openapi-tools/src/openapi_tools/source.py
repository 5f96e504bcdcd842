"""The Python source of the models and tools. Every text of the document passes through `text` or `identifiers`."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .fixed_headers import FixedHeader
from .imports import (
    DOCUMENT_IMPORT,
    LIBRARY_IMPORTS,
    MODELS_IMPORT,
    MODELS_NAMES,
    POLICY_IMPORT,
    RUNTIME_MODULE,
    RUNTIME_NAMES,
)
from .media_types import MULTIPART
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
    union_options,
)
from .text import MAX_TITLE, docstring, grouped_literal, literal, single_line

TOOL_ANNOTATIONS = {
    "GET": "READ_ONLY",
    "HEAD": "READ_ONLY",
    "OPTIONS": "READ_ONLY",
    "QUERY": "READ_ONLY",
    "PUT": "REPLACES",
    "DELETE": "REPLACES",
}
"""The annotations in the run-time part of the tools of each method; of the other methods `CHANGES`."""

MAX_NAMES_ON_LINE = 6


def models_module(models: Sequence[Model], api_title: str) -> str:
    """Return the source of `_models.py`."""
    head = docstring(f"Request and response models of {api_title}, generated from its OpenAPI document.", "")
    body = "\n\n".join(_class(model) for model in definition_order(models))
    imports = _imports(body, MODELS_NAMES)
    return f"{head}\nfrom __future__ import annotations\n\n{imports}\n\n{body}"


def tools_module(tools: Sequence[Tool], title: str) -> str:
    """Return the source of a module with these tools."""
    body = "\n\n".join([*map(_function, tools), _register_function(tools)])
    names = [name for section in LIBRARY_IMPORTS for _, library_names in section for name in library_names]
    return f"{docstring(title, '')}\n{_imports(body, [*names, *RUNTIME_NAMES], MODELS_IMPORT)}\n\n{body}"


def document_module(title: str, version: str, servers: Sequence[str], fixed: Sequence[FixedHeader]) -> str:
    """Return the source of the module that describes the document to the server."""
    arguments = ["server", f"title={literal(title)}"]
    if version:
        arguments.append(f"version={literal(version)}")
    if servers:
        arguments.append(f"servers={literal(list(servers))}")
    if headers := {header.name: header.value for header in fixed if not header.is_secret}:
        arguments.append(f"headers={literal(headers)}")
    if secret := [header.name for header in fixed if header.is_secret]:
        arguments.append(f"secret_headers={literal(secret)}")
    head = docstring(f"Servers and headers of {title}, generated from its OpenAPI document.", "")
    imports = f"from typing import Any\n\nfrom mcp.server.mcpserver import MCPServer\n\n{DOCUMENT_IMPORT}"
    body = (
        "def register(server: MCPServer[Any]) -> None:\n"
        '    """Describe the document; called once, before the server starts."""\n'
        "    describe(\n" + "".join(f"        {argument},\n" for argument in arguments) + "    )\n"
    )
    return f"{head}\n{imports}\n\n{body}"


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
    return f"{prop.name}: {_annotated(prop, prop.api_name, '')}"


def _field_arguments(alias: str, name: str, description: str) -> list[str]:
    """Return the arguments of `Field` that say how the API calls a value and what it is."""
    arguments = [f"alias={literal(alias)}"] if alias != name else []
    return [*arguments, f"description={literal(description)}"] if description else arguments


def _annotated(value: Property | Parameter | RequestBody, alias: str, prefix: str) -> str:
    """Return the annotation of a field or parameter, and the default None where it may be absent."""
    arguments = _field_arguments(alias, value.name, value.description)
    type_ = value.type
    if isinstance(type_, ScalarType | ListType):
        constraints = [f"{name}={literal(constraint)}" for name, constraint in type_.constraints]
        if isinstance(type_, ScalarType) and type_.format:
            constraints.append(f'json_schema_extra={{"format": {grouped_literal(type_.format)}}}')
        base = type_.kind if isinstance(type_, ScalarType) else f"list[{type_.item.annotation(prefix)}]"
        arguments = [*arguments, *constraints]
    else:
        base = type_.annotation(prefix)
    if not value.required and base != "Any" and not accepts_null(type_):
        base = f"Omittable[{base}]"
    annotation = f"Annotated[{base}, Field({', '.join(arguments)})]" if arguments else base
    return annotation if value.required else f"{annotation} = None"


# --- Tools -------------------------------------------------------------------------------------------------------


def _function(tool: Tool) -> str:
    arguments = ["ctx: Context", *_arguments(tool)]
    if len(arguments) > 1:
        arguments.insert(1, "*")
    scopes = f"@policy(scopes={literal(list(tool.scopes))})\n" if tool.scopes else ""
    return (
        f"{scopes}async def {tool.function}(\n"
        + "".join(f"    {argument},\n" for argument in arguments)
        + f") -> Answer[{_response_type(tool)}]:\n"
        + docstring(tool.description, "    ")
        + "    return await call(\n"
        + "".join(f"        {argument},\n" for argument in _call_arguments(tool))
        + "    )\n"
    )


def _arguments(tool: Tool) -> list[str]:
    """Return the tool's arguments: the required parameters, then the optional ones, with the body after its kind."""
    arguments: list[Parameter | RequestBody] = [*tool.parameters, *([tool.body] if tool.body is not None else [])]
    return [_argument(each) for each in sorted(arguments, key=lambda each: not each.required)]


def _argument(parameter: Parameter | RequestBody) -> str:
    return f"{parameter.name}: {_annotated(parameter, parameter.argument, 'models.')}"


def _response_type(tool: Tool) -> str:
    response = tool.response
    if response.kind in ("json", "lines"):
        annotation = response.type.annotation("models.")
        return f"{annotation} | Done" if response.may_be_empty and annotation != "Any" else annotation
    return {"text": "str", "binary": "Binary", "nothing": "Done"}[response.kind]


def _call_arguments(tool: Tool) -> list[str]:
    """Return the arguments of `call`."""
    arguments = ["ctx", literal(tool.method), grouped_literal(tool.path)]
    if path := tool.parameters_in("path"):
        values = ", ".join(f"{literal(parameter.placeholder)}: {_path_value(parameter)}" for parameter in path)
        arguments.append(f"path_params={{{values}}}")
    if query := tool.parameters_in("query"):
        arguments.append(f"query=[{', '.join(f'*{_query_pairs(parameter)}' for parameter in query)}]")
    if tool.headers or tool.parameters_in("header"):
        arguments.append(f"headers={_by_api_name(tool.parameters_in('header'), tool.headers)}")
    if cookies := tool.parameters_in("cookie"):
        arguments.append(f"cookies={_by_api_name(cookies)}")
    if tool.body is not None:
        arguments.append(f"body={_body(tool.body)}")
    if tool.response.accept:
        arguments.append(f"accept={literal(tool.response.accept)}")
    return arguments


def _path_value(parameter: Parameter) -> str:
    """Return the value of a path parameter in its style."""
    options = ", explode=True" if parameter.explode and not _is_single_value(parameter.type) else ""
    if parameter.is_json:
        return f"to_json({parameter.name})"
    if parameter.style == "label":
        return f"label({parameter.name}{options})"
    if parameter.style == "matrix":
        return f"matrix({grouped_literal(parameter.api_name)}, {parameter.name}{options})"
    return parameter.name if _is_single_value(parameter.type) else f"simple({parameter.name}{options})"


def _by_api_name(parameters: Sequence[Parameter], constants: Mapping[str, str] = MappingProxyType({})) -> str:
    entries = [f"{literal(name)}: {literal(value)}" for name, value in constants.items()]
    for parameter in parameters:
        is_exploded = parameter.location == "header" and parameter.explode and not _is_single_value(parameter.type)
        value = f"exploded({parameter.name})" if is_exploded else parameter.name
        if parameter.is_json:
            value = f"json_text({parameter.name})"
        entries.append(f"{literal(parameter.api_name)}: {value}")
    return f"{{{', '.join(entries)}}}"


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
            required = ", required=True" if body.required and accepts_null(body.type) else ""
            return f"json_body({body.name}{media_type}{required})"
        case "form":
            styles = f", {literal(body.property_styles)}" if body.property_styles else ""
            return f"form_body({body.name}{styles})"
        case "multipart":
            files = f", {literal(body.files)}" if body.files else ""
            types = f", types={literal(body.part_types)}" if body.part_types else ""
            media_type = "" if body.media_type == MULTIPART else f", media_type={literal(body.media_type)}"
            styles = f", styles={literal(body.property_styles)}" if body.property_styles else ""
            return f"multipart_body({body.name}{files}{types}{media_type}{styles})"
        case "lines":
            return f"json_lines_body({body.name}, {literal(body.media_type)})"
    return f"{body.kind}_body({body.name}, {literal(body.media_type)})"


def _register_function(tools: Sequence[Tool]) -> str:
    lines = [
        "def register(server: MCPServer[Any]) -> None:\n",
        '    """Register these tools; called once, before the server starts."""\n',
    ]
    for tool in tools:
        annotations = TOOL_ANNOTATIONS.get(tool.method, "CHANGES")
        name = f", name={literal(tool.name)}" if tool.name != tool.function else ""
        strict = ", strict=True" if tool.strict else ""
        lines.append(f"    add(server, {tool.function}, {grouped_literal(tool.title)}, {annotations}{name}{strict})\n")
    return "".join(lines)


# --- Imports -----------------------------------------------------------------------------------------------------


def _imports(body: str, allowed: Sequence[str], models_import: str = "") -> str:
    """Return the imports of the names that `body` uses, sorted as the linter wants them.

    Args:
        body: The source without its imports.
        allowed: What the module may import: a class of the models may have the name of something else.
        models_import: The import of the models, for a module that may use them.
    """
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)} & {
        *allowed,
        "models",
        "policy",
    }
    sections = ["".join(_import(module, names, used) for module, names in section) for section in LIBRARY_IMPORTS]
    own = POLICY_IMPORT if models_import and "policy" in used else ""
    own += _import(RUNTIME_MODULE, [name for name in RUNTIME_NAMES if name in used], used)
    if models_import and "models" in used:
        own += models_import
    return "\n".join(section for section in [*sections, own] if section)


def _import(module: str, names: Sequence[str], used: set[str]) -> str:
    used_names = [name for name in names if name in used]
    if len(used_names) > MAX_NAMES_ON_LINE:
        return f"from {module} import (\n" + "".join(f"    {name},\n" for name in used_names) + ")\n"
    return f"from {module} import {', '.join(used_names)}\n" if used_names else ""
