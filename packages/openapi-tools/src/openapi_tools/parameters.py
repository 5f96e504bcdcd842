"""The parameters of an operation: path, query, headers and cookies."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Set
from typing import cast
from urllib.parse import quote

from .document import Document, Node, UnresolvedReferenceError
from .fixed_headers import FixedHeader, constant_value
from .identifiers import Namespace, pascal_case, snake_case
from .imports import CONTEXT
from .media_types import body_kind, is_json
from .operations import Location, Operation, Parameter, UnknownFormError
from .python_types import ListType, MapType, Model, NamedType, Type, is_object, union_options
from .report import Report
from .schema_keywords import description_of
from .schemas import SchemaConverter
from .text import MAX_FIELD_DESCRIPTION, clean_text, is_unicode, single_line

ARGUMENT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""A name of an argument that every host accepts; some reject others, with all tools of the server."""

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
"""The name of a header or cookie, a token (RFC 9110, section 5.6.2)."""

IGNORED_HEADERS = frozenset(("accept", "content-type", "authorization"))
"""Header parameters that "shall be ignored" (OpenAPI 3.1, section 4.8.12.1)."""

CLIENT_HEADERS = frozenset(
    """
    host content-length content-encoding transfer-encoding connection keep-alive upgrade te trailer cookie
    proxy-authorization proxy-connection expect
    """.split()
)
"""Headers that only the HTTP client sets."""

STYLES: Mapping[Location, tuple[str, ...]] = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}
"""The styles of each location, the default first (OpenAPI 3.1, section 4.8.12.3)."""

LOCATIONS = tuple(STYLES)

PATH_SAFE = "/?&=:@!$'()*+,;~-._%"
"""Characters of a path in the document that are sent as they are."""


class ParameterReader:
    """Reads the parameters of one operation after the other."""

    def __init__(
        self, document: Document, report: Report, schemas: SchemaConverter, credential_headers: Set[str]
    ) -> None:
        """Create a reader.

        Args:
            credential_headers: Names in lower case of headers that the upstream client sets.
        """
        self.document = document
        self.report = report
        self.schemas = schemas
        self.credential_headers = credential_headers
        self.fixed_headers: Mapping[str, FixedHeader] = {}
        """Headers that are settings, by their names in lower case."""
        self.used_headers: dict[str, FixedHeader] = {}
        """Those of the operations that were read."""

    def read(self, operation: Operation, class_name: str) -> tuple[str, list[Parameter], dict[str, str]]:
        """Return the path, quoted, the parameters, and the headers that always have the same value."""
        declared = self._declared(operation)
        names, arguments = Namespace(), Namespace((CONTEXT,))
        whole_path = without_declared_pairs(operation.path.partition("#")[0], declared)
        placeholders = dict.fromkeys(re.findall(r"\{([^{}]+)\}", whole_path))
        for api_name in placeholders:
            if ("path", api_name) not in declared:
                text = f"{single_line(api_name, 60)!r} of the path is not declared, so it is text"
                self.report.add("parameter", operation.node.pointer, text)
                undeclared = {"schema": {"type": "string"}, "required": True}
                declared["path", api_name] = operation.node.with_value(undeclared)
        parameters: list[Parameter] = []
        constants: dict[str, str] = {}
        for (location, api_name), node in sorted(declared.items(), key=lambda item: LOCATIONS.index(item[0][0])):
            if location == "path" and api_name not in placeholders:
                text = "it is a path parameter that the path does not contain: left out"
                self.report.add("parameter", node.pointer, text)
            elif not self._can_be_sent(location, api_name, node) or (
                location == "header" and self._is_setting(api_name, node)
            ):
                continue
            elif location == "header" and (value := self._constant(node)) is not None:
                constants[api_name] = value
            else:
                parameters.append(self._read_parameter(location, api_name, node, names, arguments, class_name))
        in_path = {each.api_name: each for each in parameters if each.location == "path"}
        placeholders_used = Namespace()
        for each in in_path.values():
            word = re.fullmatch(r"[A-Za-z0-9_]+", each.api_name)
            each.placeholder = placeholders_used.claim(each.api_name if word else each.name)
        return self._path(operation, whole_path, in_path), parameters, constants

    def _declared(self, operation: Operation) -> dict[tuple[Location, str], Node]:
        """Return the parameters by location and name; the operation's own replace those of its path."""
        declared: dict[tuple[Location, str], Node] = {}
        for owner in (operation.path_item, operation.node):
            for entry in owner.get("parameters").elements():
                try:
                    node = self.document.resolve(entry)
                except UnresolvedReferenceError as error:
                    self.report.add_unresolved("reference", entry, error)
                    continue
                location, api_name = node.mapping.get("in"), node.mapping.get("name")
                if location == "querystring":  # the whole query, which a form's pairs can be (OpenAPI 3.2)
                    location, form = "query", node.get("content").get("application/x-www-form-urlencoded")
                    fields = {"in": "query", "name": api_name, "schema": form.mapping.get("schema", {"type": "object"})}
                    if not form.mapping and node.get("content").mapping:
                        text = "a whole query that is not a form cannot be written"
                        if node.mapping.get("required") is True:
                            raise UnknownFormError(text)
                        self.report.add("parameter", entry.pointer, f"{text}: left out")
                        continue
                    node = node.with_value({**node.mapping, **fields, "content": None})
                if location not in LOCATIONS or not isinstance(api_name, str) or not api_name:
                    self.report.add("parameter", entry.pointer, "it has no name or no valid location: left out")
                    continue
                declared[cast(Location, location), api_name] = node
        return declared

    def _can_be_sent(self, location: Location, api_name: str, node: Node) -> bool:
        """Return whether the parameter can be sent, and report why not."""
        if not is_unicode(api_name):
            problem = "its name is not valid Unicode"
            self.report.add("parameter", node.pointer, f"{problem}: left out")
            return False
        media_type, media = next(node.get("content").entries(), ("", node))
        if (
            media_type
            and body_kind(media_type, is_structured=True) != "json"
            and self.document.has_parts(media.get("schema"))
        ):
            problem = f"{api_name!r} has parts, and it is not known how they are written in {media_type}"
            if location == "path" or node.mapping.get("required") is True:
                raise UnknownFormError(single_line(problem, 200))
            self.report.add("parameter", node.pointer, f"{single_line(problem, 200)}: left out")
            return False
        if location in ("path", "query"):
            return True
        lower = api_name.lower()
        if not HEADER_NAME.fullmatch(api_name):
            problem = f"its name is not valid for a {location}"
        elif location == "cookie":
            return True
        elif lower in CLIENT_HEADERS:
            problem = f"only the HTTP client sets the header {api_name}"
        elif lower in IGNORED_HEADERS:
            problem = f"OpenAPI ignores a header parameter {api_name}"
        elif lower in self.credential_headers:
            problem = f"{api_name} carries the credentials"
        else:
            return True
        self.report.add("parameter", node.pointer, f"{problem}: left out")
        return False

    def _is_setting(self, name: str, node: Node) -> bool:
        """Return whether a header is a setting, and report it."""
        fixed = self.fixed_headers.get(name.lower())
        if fixed is None:
            return False
        self.used_headers[name.lower()] = fixed
        value = f"; the document's value is {single_line(fixed.value, 60)}" if fixed.value else ""
        self.report.add("header", node.pointer, f"{fixed.name}: {fixed.setting} has it{value}")
        return True

    def _constant(self, node: Node) -> str | None:
        """Return the value of a required header that has only one, and report it."""
        value = constant_value(self.document, node) if node.mapping.get("required") is True else None
        if value is not None:
            self.report.add("header", node.pointer, f"always sent as {single_line(value, 60)}")
        return value

    def _read_parameter(
        self, location: Location, api_name: str, node: Node, names: Namespace, arguments: Namespace, class_name: str
    ) -> Parameter:
        mapping = node.mapping
        argument = api_name if ARGUMENT_NAME.fullmatch(api_name) else snake_case(api_name, "parameter").rstrip("_")
        argument = arguments.claim(argument if arguments.is_free(argument) else f"{argument}_{location}")
        name = names.claim(snake_case(argument, "parameter"))
        style = str(mapping.get("style") or STYLES[location][0])
        explode = mapping.get("explode")
        place, sent_as_json = node.get("schema"), False
        content = node.get("content")
        if content.mapping:
            media_type, media = next(content.entries())
            place, sent_as_json = media.get("schema"), is_json(media_type)
            if not sent_as_json and self.document.has_parts(place):
                sent_as_json = True
                text = f"its parts are written as JSON in {single_line(media_type, 60)}"
                self.report.add("parameter", node.pointer, text)
            elif not sent_as_json:
                self.report.add("parameter", node.pointer, f"{single_line(media_type, 60)} is sent as text")
        type_ = self.schemas.convert(place, f"{class_name}{pascal_case(api_name, 'Parameter')}", "request")
        schema = self.document.resolved_mapping(place)
        description = clean_text(mapping.get("description"), MAX_FIELD_DESCRIPTION) or schema.get("description", "")
        about = {key: mapping[key] for key in ("deprecated", "example", "examples") if key in mapping}
        description = description_of({**schema, **about, "description": description})
        if argument != api_name:
            self.report.add("name", node.pointer, f"the argument {argument} is sent as {single_line(api_name, 100)}")
            description = f"{description}{' ' if description else ''}Sent as {single_line(api_name, 100)}."
        parameter = Parameter(
            name=name,
            argument=argument,
            api_name=api_name,
            location=location,
            type=type_,
            required=mapping.get("required") is True or location == "path",
            description=description,
            style=style,
            explode=explode if isinstance(explode, bool) else style in ("form", "deepObject"),
            allow_reserved=mapping.get("allowReserved") is True,
            is_json=sent_as_json,
        )
        self._replace_unsupported_style(parameter, node)
        return parameter

    def _replace_unsupported_style(self, parameter: Parameter, node: Node) -> None:
        """Report a style that is not valid or cannot be sent, and what is sent in its place."""
        location = parameter.location
        if parameter.style not in STYLES[location]:
            default = STYLES[location][0]
            text = f"style {single_line(parameter.style, 40)!r} is not valid in this location: sent as {default}"
            self.report.add("parameter", node.pointer, text)
            parameter.style, parameter.explode = default, default == "form"
        if parameter.is_json:
            return
        if location == "cookie" and parameter.explode and any(map(is_object, union_options(parameter.type))):
            text = "explode of an object: its parts are separated by commas"
            self.report.add("parameter", node.pointer, text)
        self._report_nested(parameter, node)

    def _report_nested(self, parameter: Parameter, node: Node) -> None:
        """Report how lists and objects within a list or object are sent, for which no style has a rule."""
        nested = _nested_parts(parameter.type)
        if nested and parameter.style == "deepObject":
            text = "deepObject has no rule for parts of parts: they are sent as a[b][c], those of lists as a[0]"
            self.report.add("parameter", node.pointer, text)
            return
        if parameter.style == "form" and parameter.explode and ("object", "list") in nested:
            nested.remove(("object", "list"))
            self.report.add("parameter", node.pointer, "a list in an exploded object is sent as several parameters")
        for outer, inner in sorted(nested):
            article = "an" if outer == "object" else "a"
            text = f"style {parameter.style} has no rule for {inner}s in {article} {outer}: each is sent as JSON"
            self.report.add("parameter", node.pointer, text)

    def _path(self, operation: Operation, path: str, parameters: Mapping[str, Parameter]) -> str:
        """Return the operation's path, quoted, with its placeholders."""
        if "#" in operation.path:
            text = "the path has a fragment, which is not part of a request"
            self.report.add("parameter", operation.node.pointer, text)
        parts: list[str] = []
        for text, api_name in re.findall(r"([^{}]*)(?:\{([^{}]+)\}|[{}]|$)", path):
            parts.append(quote(text, safe=PATH_SAFE))
            if api_name in parameters:
                parts.append(f"{{{parameters[api_name].placeholder}}}")
        return "".join(parts)


def _nested_parts(type_: Type) -> set[tuple[str, str]]:
    """Return which of `list` and `object` a value of the type has in a list or object."""
    found: set[tuple[str, str]] = set()
    for option in map(_target, union_options(type_)):
        inner: list[Type] = []
        if isinstance(option, ListType):
            inner = [option.item]
        elif isinstance(option, MapType):
            inner = [option.value]
        elif isinstance(option, Model):
            inner = [prop.type for prop in option.properties]
        outer = "list" if isinstance(option, ListType) else "object"
        for part in (_target(each) for type_ in inner for each in union_options(type_)):
            if isinstance(part, ListType) or is_object(part):
                found.add((outer, "object" if is_object(part) else "list"))
    return found


def _target(type_: Type) -> Type:
    """Return what a type with a name stands for."""
    while isinstance(type_, NamedType) and type_.target is not None:
        type_ = type_.target
    return type_


def without_declared_pairs(path: str, declared: Container[tuple[str, str]]) -> str:
    """Return a path without the pairs `name={name}` of its query whose parameter is declared as one of the query."""
    path, question_mark, query = path.partition("?")
    pairs = [pair for pair in query.split("&") if pair]
    remaining = [
        pair
        for pair in pairs
        if not (match := re.fullmatch(r"([^={}]+)=\{([^{}]+)\}", pair)) or ("query", match[1]) not in declared
    ]
    return path + question_mark + "&".join(remaining) if remaining else path
