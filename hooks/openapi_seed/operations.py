"""Reads the operations of a document: what a tool needs to know of each, and what of it no tool can do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import quote

from .document import Document, DocumentError, Node, listed
from .names import (
    IN_TOOLS,
    MAX_DESCRIPTION,
    MAX_FIELD_DESCRIPTION,
    MAX_TITLE,
    MODEL_ATTRIBUTES,
    MODULES,
    TOOLS,
    Namespace,
    clean,
    one_line,
    pascal,
    snake,
)
from .report import Report
from .schemas import (
    Anything,
    ListOf,
    MapOf,
    Model,
    Scalar,
    Schemas,
    Type,
    Union,
    described,
    is_media_type,
    members,
)

METHODS = ("get", "head", "options", "put", "delete", "post", "patch")
Location = Literal["path", "query", "header", "cookie"]

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
"""What a header or a cookie may be called (RFC 9110, 5.6.2)."""

IGNORED_HEADERS = frozenset(("accept", "content-type", "authorization"))
"""Header parameters that "shall be ignored" (OpenAPI 3.1, 4.8.12.1)."""

FORBIDDEN_HEADERS = frozenset(
    """
    host content-length content-encoding transfer-encoding connection keep-alive upgrade te trailer cookie
    proxy-authorization proxy-connection expect
    """.split()
)
"""Headers that are the client's own business."""

PAGES = frozenset(
    """
    page per_page page_size pagesize page_number page_token pagetoken cursor offset limit starting_after ending_before
    after before next_token nexttoken continue marker start_cursor
    """.split()
)
"""Query parameters by which APIs page."""


class SelectionError(Exception):
    """A selection that means nothing in this document; the message says what there is."""


@dataclass
class Parameter:
    name: str
    """The argument's."""
    wire: str
    location: Location
    type: Type
    required: bool
    description: str
    style: str
    explode: bool
    reserved: bool = False
    in_json: bool = False


@dataclass
class Body:
    kind: Literal["json", "form", "multipart", "text", "binary"]
    media_type: str
    type: Type
    required: bool
    description: str
    styles: dict[str, str] = field(default_factory=dict)
    """Of a form's properties: deep, flat (not exploded) or json."""
    files: dict[str, str] = field(default_factory=dict)
    """Media type by property of what the model writes as base64."""
    name: str = "body"


@dataclass
class Answer:
    kind: Literal["json", "text", "binary", "nothing"]
    status: int
    type: Type
    media_type: str = ""
    may_be_empty: bool = False


@dataclass
class Operation:
    pointer: str
    method: str
    path: str
    """With `{argument}` in the place of each path parameter, the rest quoted."""
    name: str
    module: str
    title: str
    description: str
    parameters: list[Parameter]
    body: Body | None
    answer: Answer

    def of(self, location: Location) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.location == location]


@dataclass(frozen=True)
class Found:
    """An operation as it stands in the document."""

    node: Node
    item: Node
    """The path item around it."""
    method: str
    path: str

    @property
    def id(self) -> str:
        given = self.node.mapping.get("operationId")
        return given if isinstance(given, str) else ""

    @property
    def tags(self) -> list[str]:
        return [tag for tag in listed(self.node.mapping.get("tags")) if isinstance(tag, str)]

    @property
    def deprecated(self) -> bool:
        return self.node.mapping.get("deprecated") is True


def found_in(document: Document, report: Report) -> list[Found]:
    """Every operation of the document, in its order."""
    found: list[Found] = []
    for path, item in document.root.get("paths").entries():
        if path.startswith("x-"):
            continue
        try:
            item = document.resolve(item)
        except DocumentError as error:
            report.add("skipped operation", item.pointer, str(error).removeprefix(f"{item.pointer}: "))
            continue
        there = [method for method in METHODS if isinstance(item.mapping.get(method), dict)]
        found += [Found(item.child(method), item, method.upper(), path) for method in there]
        if "trace" in item.mapping:
            report.add("skipped operation", f"{item.pointer}/trace", "TRACE shows a request to whoever asks")
        callbacks = [each for _, each in item.entries() if each.mapping.get("callbacks")]
        for each in callbacks:
            report.add("skipped operation", f"{each.pointer}/callbacks", "the API makes these requests, not the server")
    for _, item in document.root.get("webhooks").entries():
        report.add("skipped operation", item.pointer, "the API makes these requests, not the server")
    order = {pointer: number for number, pointer in enumerate(_pointers(document))}
    return sorted(found, key=lambda each: order.get(each.node.pointer, 0))


def _pointers(document: Document) -> Iterator[str]:
    """The operations' places as the document orders them; of a path in another file in the order of `METHODS`."""
    for _, item in document.root.get("paths").entries():
        yield from (each.pointer for key, each in item.entries() if key in METHODS)


def patterns(selection: str) -> list[str]:
    """The parts of a selection, which commas or spaces part; `GET /pets` is one part."""
    words = [word for word in re.split(r"[\s,]+", selection) if word]
    parts: list[str] = []
    for word in words:
        if parts and parts[-1].lower() in METHODS and word.startswith("/"):
            parts[-1] = f"{parts[-1].upper()} {word}"
        else:
            parts.append(word)
    return parts


def selected(found: list[Found], selection: str, report: Report) -> list[Found]:
    """The operations that a selection means: by operationId, tag, path or method and path, each of which may be a glob.

    An empty one means all but the deprecated; those have to be named by more than a tag.

    Raises:
        SelectionError: a part of it means nothing.
    """
    wanted = patterns(selection)
    chosen: dict[int, bool] = {}
    for pattern in wanted:
        hits = {number: how for number, each in enumerate(found) if (how := _meant(pattern, each))}
        if not hits:
            raise SelectionError(_unknown(pattern, found))
        for number, how in hits.items():
            chosen[number] = chosen.get(number, False) or (how == "named" and not set("*?[") & set(pattern))
    result: list[Found] = []
    for number, each in enumerate(found):
        if wanted and number not in chosen:
            continue
        if each.deprecated and not chosen.get(number, False):
            report.add("deprecated", each.node.pointer, f"{each.method} {one_line(each.path, 100)}")
        else:
            result.append(each)
    return result


def _meant(pattern: str, found: Found) -> str:
    method, _, path = pattern.rpartition(" ")
    if path.startswith("/"):
        if method in ("", found.method) and (path == found.path or fnmatchcase(found.path, _glob(path))):
            return "named" if method else "path"
        return ""
    if pattern == found.id or fnmatchcase(found.id, _glob(pattern)):
        return "named"
    plain = _plain(pattern)
    return "tag" if any(fnmatchcase(_plain(tag), plain) for tag in found.tags) else ""


def _glob(pattern: str) -> str:
    return pattern.replace("[", "[[]")


def _plain(tag: str) -> str:
    """So that a tag of two words can be given in a list of words."""
    return re.sub(r"[\s_-]+", "-", tag.lower())


def _unknown(pattern: str, found: list[Found]) -> str:
    known = dict.fromkeys(name for each in found for name in (each.id, *map(_plain, each.tags), each.path) if name)
    close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
    shown = ", ".join(one_line(each, 80) for each in close or [*known][:3])
    return (
        f"the selection {pattern!r} means no operation of the document"
        + (f"; there are, for example: {shown}" if shown else "")
        + ". Give operationIds, tags, or METHOD /path, * for any text."
    )


# --- One operation -------------------------------------------------------------------------------------------


class Reader:
    """Reads operations one after the other; names are given out once among all of them."""

    def __init__(self, document: Document, report: Report, taken_modules: frozenset[str] = frozenset()) -> None:
        self.document = document
        self.report = report
        self.schemas = Schemas(document, report)
        self.security = Security(document, report)
        self._tools = Namespace(TOOLS | IN_TOOLS)
        self._modules: dict[str, str] = {}
        self._module_names = Namespace(MODULES | taken_modules)

    def read_all(self, found: list[Found]) -> list[Operation]:
        grouped = module_names(found)
        return [self.read(each, group) for each, group in zip(found, grouped, strict=True)]

    def read(self, found: Found, group: str) -> Operation:
        operation = found.node
        plain = snake(found.id, "") or snake(f"{found.method} {found.path}", "operation")
        name = self._tools.take(plain)
        if found.id and name != plain:
            self.report.add("name", f"{operation.pointer}/operationId", f"{name}, since {plain} is taken")
        if group not in self._modules:
            self._modules[group] = self._module_names.take(snake(group, "operations"))
        class_name = pascal(name, "Operation")
        path, parameters = self._parameters(found, class_name)
        body = self._body(found, class_name)
        if body is not None:
            body.name = Namespace(parameter.name for parameter in parameters).take("body")
        self._servers(found)
        self.security.check(operation)
        title = one_line(operation.mapping.get("summary"), MAX_TITLE) or one_line(
            name.replace("_", " ").strip().capitalize(), MAX_TITLE
        )
        return Operation(
            pointer=operation.pointer,
            method=found.method,
            path=path,
            name=name,
            module=self._modules[group],
            title=title,
            description=self._description(found, title, parameters),
            parameters=parameters,
            body=body,
            answer=self._answer(found, class_name),
        )

    def _description(self, found: Found, title: str, parameters: list[Parameter]) -> str:
        text = clean(found.node.mapping.get("description"), MAX_DESCRIPTION) or title
        if found.deprecated:
            text = f"Deprecated. {text}"
        paging = [each.name for each in parameters if each.location == "query" and snake(each.wire, "x") in PAGES]
        notes = []
        if paging and found.method == "GET":
            notes.append(f"The answer may be one page of several; {', '.join(paging)} say which.")
        if found.method == "GET" and self._links_pages(found.node):
            notes.append("The API names further pages in its Link header, which is not shown: ask for the next one.")
        return "\n\n".join([text, *notes])

    def _links_pages(self, operation: Node) -> bool:
        for status, response in operation.get("responses").entries():
            if status.startswith("2"):
                try:
                    headers = self.document.resolve(response).get("headers")
                except DocumentError:
                    continue
                if any(name.lower() == "link" for name, _ in headers.entries()):
                    return True
        return False

    def _servers(self, found: Found) -> None:
        own = found.node.mapping.get("servers") or found.item.mapping.get("servers")
        root = self.document.root.mapping.get("servers")
        if not own or _places(own) == _places(root):
            return
        every = [item.value.get("servers") for _, item in self.document.root.get("paths").entries() if item.mapping]
        if not root and all(each == own for each in every):
            return  # the document's only server, said at every path
        urls = [each.get("url") for each in own if isinstance(each, dict)] if isinstance(own, list) else []
        shown = one_line(", ".join(str(url) for url in urls), 200)
        self.report.add("server", found.node.pointer, f"{found.method} {one_line(found.path, 100)}: {shown}")

    # --- Parameters ---------------------------------------------------------------------------------------

    def _parameters(self, found: Found, class_name: str) -> tuple[str, list[Parameter]]:
        """The path with the arguments' names, and the parameters."""
        declared = self._declared(found)
        names = Namespace(IN_TOOLS | MODEL_ATTRIBUTES | {"self", "body"})
        made: list[Parameter] = []
        placeholders = dict.fromkeys(re.findall(r"\{([^{}]+)\}", found.path.partition("#")[0]))
        for wire in placeholders:
            if ("path", wire) not in declared:
                self.report.add(
                    "parameter", found.node.pointer, f"{one_line(wire, 60)!r} of the path is not declared: text"
                )
                declared[("path", wire)] = found.node.replaced({"schema": {"type": "string"}, "required": True})
        order = ("path", "query", "header", "cookie")
        for (location, wire), node in sorted(declared.items(), key=lambda item: order.index(item[0][0])):
            if location == "path" and wire not in placeholders:
                self.report.add("parameter", node.pointer, "it is in the path, which has no place for it: left out")
            elif self._usable(location, wire, node):
                made.append(self._parameter(location, wire, node, names, class_name))
        return self._path(found, {each.wire: each for each in made if each.location == "path"}), made

    def _declared(self, found: Found) -> dict[tuple[Location, str], Node]:
        """The parameters by location and name, the operation's own before those of its path."""
        declared: dict[tuple[Location, str], Node] = {}
        for owner in (found.item, found.node):
            for each in owner.get("parameters").each():
                try:
                    node = self.document.resolve(each)
                except DocumentError as error:
                    self.report.add("reference", each.pointer, str(error).removeprefix(f"{each.pointer}: "))
                    continue
                location, wire = node.mapping.get("in"), node.mapping.get("name")
                if location not in ("path", "query", "header", "cookie") or not isinstance(wire, str) or not wire:
                    self.report.add("parameter", each.pointer, "it has no name, or is nowhere in a request: left out")
                    continue
                declared[(location, wire)] = node
        return declared

    def _usable(self, location: Location, wire: str, node: Node) -> bool:
        """Whether the parameter can be sent; what cannot is reported."""
        if location in ("path", "query"):
            return True
        if not TOKEN.fullmatch(wire):
            self.report.add("parameter", node.pointer, f"its name cannot be one of a {location}: left out")
            return False
        if location == "cookie":
            return True
        if wire.lower() in FORBIDDEN_HEADERS:
            self.report.add("parameter", node.pointer, f"the client alone sets the header {wire}: left out")
            return False
        if wire.lower() in IGNORED_HEADERS:
            self.report.add("parameter", node.pointer, f"OpenAPI has a header parameter {wire} ignored: left out")
            return False
        if wire.lower() in self.security.headers:
            self.report.add("parameter", node.pointer, f"{wire} carries the credentials: left out")
            return False
        return True

    def _parameter(self, location: Location, wire: str, node: Node, names: Namespace, class_name: str) -> Parameter:
        plain = snake(wire, "parameter")
        name = names.take(plain if names.is_free(plain) else f"{plain.rstrip('_')}_{location}")
        about = node.mapping
        style = about.get("style") or ("form" if location in ("query", "cookie") else "simple")
        explode = about.get("explode") if isinstance(about.get("explode"), bool) else style in ("form", "deepObject")
        content = node.get("content")
        in_json = False
        if content.mapping:
            media, inner = next(content.entries())
            place = inner.get("schema")
            in_json = _is_json(media)
            if not in_json:
                self.report.add("parameter", node.pointer, f"{one_line(media, 60)} is sent as text")
        else:
            place = node.get("schema")
        found = self.schemas.type_of(place, f"{class_name}{pascal(wire, 'Parameter')}", "request")
        schema = _resolved(self.document, place)
        description = clean(about.get("description"), MAX_FIELD_DESCRIPTION)
        description = described({**schema, "description": description or schema.get("description", "")}, found)
        made = Parameter(
            name=name,
            wire=wire,
            location=location,
            type=found,
            required=about.get("required") is True or location == "path",
            description=description,
            style=str(style),
            explode=bool(explode),
            reserved=about.get("allowReserved") is True,
            in_json=in_json,
        )
        self._check_style(made, node)
        return made

    def _check_style(self, made: Parameter, node: Node) -> None:
        """Reports what the style of a parameter wants and the request cannot have."""
        known = {
            "path": ("simple", "label", "matrix"),
            "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
            "header": ("simple",),
            "cookie": ("form",),
        }[made.location]
        if made.style not in known:
            usual = known[0]
            self.report.add("parameter", node.pointer, f"style {one_line(made.style, 40)!r} is none here: {usual}")
            made.style, made.explode = usual, usual == "form"
        structured = any(_is_object(each) or isinstance(each, ListOf) for each in members(made.type))
        if made.in_json or not structured:
            return
        if made.location == "path" and (made.style != "simple" or made.explode):
            self.report.add(
                "parameter", node.pointer, f"style {made.style} of a list or object: its parts go with commas"
            )
        elif made.location in ("header", "cookie") and made.explode and any(map(_is_object, members(made.type))):
            self.report.add("parameter", node.pointer, "explode of an object: its parts go with commas")

    def _path(self, found: Found, parameters: Mapping[str, Parameter]) -> str:
        whole, hash_sign, _ = found.path.partition("#")
        if hash_sign:
            self.report.add("parameter", found.node.pointer, "the path has a fragment, which HTTP does not send")
        parts: list[str] = []
        for text, wire in re.findall(r"([^{}]*)(?:\{([^{}]+)\}|[{}]|$)", whole):
            parts.append(quote(text, safe="/?&=:@!$'()*+,;~-._%"))
            if wire in parameters:
                made = parameters[wire]
                if made.style == "matrix":
                    parts.append(f";{quote(made.wire, safe='')}=")
                elif made.style == "label":
                    parts.append(".")
                parts.append(f"{{{made.name}}}")
        return "".join(parts)

    # --- Bodies -------------------------------------------------------------------------------------------

    def _body(self, found: Found, class_name: str) -> Body | None:
        given = found.node.get("requestBody")
        if not given.mapping:
            return None
        try:
            node = self.document.resolve(given)
        except DocumentError as error:
            self.report.add("request body", given.pointer, str(error).removeprefix(f"{given.pointer}: "))
            return None
        content = node.get("content")
        offered = {media: (_body_kind(media), place) for media, place in content.entries()}
        rank = ("json", "form", "multipart", "text", "binary")
        usable = sorted(
            (item for item in offered.items() if item[1][0] in rank),
            key=lambda item: (rank.index(item[1][0]), item[0] != "application/json"),
        )
        if not usable:
            self.report.add("request body", node.pointer, "no media type is named: left out")
            return None
        media, (kind, place) = usable[0]
        if kind in ("json", "form", "multipart") and self._is_empty(node, place.get("schema")):
            return None
        others = [one_line(each, 60) for each in offered if each != media]
        if others:
            self.report.add("request body", node.pointer, f"sent as {media}, not as {', '.join(others)}")
        if found.method in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE"):
            self.report.add(
                "request body", node.pointer, f"a body of {found.method} has no defined meaning; it is sent"
            )
        sent_as = "application/json" if "*" in media and kind == "json" else media.partition(";")[0].strip().lower()
        if "*" in sent_as or not is_media_type(sent_as):
            sent_as = "application/octet-stream" if kind == "binary" else "text/plain"
        body = Body(
            kind=kind,
            media_type=sent_as,
            type=Scalar("str"),
            required=node.mapping.get("required") is True,
            description=clean(node.mapping.get("description"), MAX_FIELD_DESCRIPTION),
        )
        if kind == "binary":
            body.description = f"{body.description} In base64.".strip()
        if kind in ("text", "binary"):
            return body
        body.type = self.schemas.type_of(place.get("schema"), f"{class_name}Body", "request")
        if kind in ("form", "multipart") and not all(map(_is_object, members(body.type))):
            self.report.add("request body", place.pointer, "a form is an object: any properties are accepted")
            body.type = MapOf(Anything())
        if kind == "form":
            body.styles = self._form_styles(place, body.type)
        if kind == "multipart":
            body.files = {
                each.wire: each.binary
                for model in members(body.type)
                if isinstance(model, Model)
                for each in model.properties
                if each.binary
            }
            for name, encoding in place.get("encoding").entries():
                named = encoding.mapping.get("contentType")
                if name in body.files and isinstance(named, str) and is_media_type(named):
                    body.files[name] = named
                elif named is not None and not (isinstance(named, str) and is_media_type(named)):
                    self.report.add("request body", encoding.pointer, "its contentType is left to the client")
        return body

    def _is_empty(self, body: Node, schema: Node) -> bool:
        """Whether a body is an object that cannot have any property, as some generators give every operation."""
        about = _resolved(self.document, schema)
        allowed = about.get("additionalProperties", True)
        nothing = about.get("properties") == {} and not allowed
        empty = set(about) <= {"type", "properties"} and about.get("type") == "object" and about.get("properties") == {}
        return body.mapping.get("required") is not True and (nothing or empty)

    def _form_styles(self, place: Node, found: Type) -> dict[str, str]:
        styles: dict[str, str] = {}
        for name, encoding in place.get("encoding").entries():
            style, explode = encoding.mapping.get("style"), encoding.mapping.get("explode")
            if style == "deepObject":
                styles[name] = "deep"
            elif style in ("spaceDelimited", "pipeDelimited"):
                self.report.add("request body", encoding.pointer, f"{style} in a form: its parts go with commas")
                styles[name] = "flat"
            elif (style == "form" and explode is False) or explode is False:
                styles[name] = "flat"
            elif style == "form":
                styles[name] = "form"
            elif _is_json(str(encoding.mapping.get("contentType", ""))):
                styles[name] = "json"
        return styles

    # --- Answers ------------------------------------------------------------------------------------------

    def _answer(self, found: Found, class_name: str) -> Answer:
        responses = found.node.get("responses")
        good: list[tuple[int, Node]] = []
        other: list[str] = []
        for status, node in responses.entries():
            if re.fullmatch(r"2(\d\d|XX|xx)", status):
                good.append((int(status.lower().replace("xx", "00")), node))
            else:
                other.append(status)
        if not good and "default" in other:
            good = [(200, responses.get("default"))]
        if not good:
            redirects = any(status.startswith("3") for status in other)
            said = (
                "it answers with a redirect, which is followed on the same origin only"
                if redirects
                else "no 2xx answer"
            )
            self.report.add("response", responses.pointer, f"{said}: the tool gives its status")
            return Answer("nothing", 200, Anything())
        empty = False
        texts: list[tuple[int, str, str]] = []
        types: dict[Type, tuple[int, str]] = {}
        for code, given in sorted(good, key=lambda item: item[0]):
            try:
                node = self.document.resolve(given)
            except DocumentError as error:
                self.report.add("response", given.pointer, str(error).removeprefix(f"{given.pointer}: "))
                continue
            content = [(media, place) for media, place in node.get("content").entries()]
            jsons = [(media, place) for media, place in content if _is_json(media)]
            if code in (204, 205) or found.method == "HEAD":
                empty = True
            elif jsons:
                media, place = next((item for item in jsons if item[0] == "application/json"), jsons[0])
                if any(each[1].get("schema").value != place.get("schema").value for each in jsons):
                    self.report.add("response", node.pointer, f"asked for as {media}, not as the other JSON types")
                name = f"{class_name}Answer" if len(good) == 1 else f"{class_name}Answer{code}"
                types.setdefault(self.schemas.type_of(place.get("schema"), name, "answer"), (code, media))
            elif content:
                media, _ = min(content, key=lambda item: (not _is_text(item[0]), item[0]))
                texts.append((code, media, "text" if _is_text(media) else "binary"))
            else:
                empty = True
        if types:
            code, media = next(iter(types.values()))
            for number, other_media, kind in texts:
                self.report.add(
                    "response", responses.pointer, f"{number} as {one_line(other_media, 60)} ({kind}) is an error"
                )
            whole = next(iter(types)) if len(types) == 1 else Union(tuple(types))
            return Answer("json", code, whole, _accepted(media), may_be_empty=empty)
        if texts:
            code, media, kind = texts[0]
            if kind == "binary":
                self.report.add(
                    "response",
                    responses.pointer,
                    f"{one_line(media, 60)} is given as base64, which costs the model much",
                )
            accepted = _accepted(media) or ("" if is_media_type(media) else "*/*")
            return Answer("text" if kind == "text" else "binary", code, Scalar("str"), accepted)
        return Answer("nothing", good[0][0], Anything())


def _places(servers: Any) -> list[str]:
    """The servers' URLs without their schemes."""
    urls = [str(each.get("url")) for each in listed(servers) if isinstance(each, dict)]
    return [re.sub(r"^https?:", "", url).rstrip("/") for url in urls]


def _accepted(media: str) -> str:
    """The Accept header, where it is another than the client's own."""
    plain = media.partition(";")[0].strip()
    return plain if plain not in ("application/json", "*/*") and is_media_type(plain) else ""


def _body_kind(media: str) -> Literal["json", "form", "multipart", "text", "binary"]:
    plain = media.partition(";")[0].strip().lower()
    if _is_json(media) or plain == "*/*":
        return "json"
    if plain == "application/x-www-form-urlencoded":
        return "form"
    if plain.startswith("multipart/"):
        return "multipart"
    return "text" if _is_text(media) else "binary"


def _is_json(media: str) -> bool:
    plain = media.partition(";")[0].strip().lower()
    return plain in ("application/json", "*/*", "text/json") or plain.endswith("+json")


def _is_text(media: str) -> bool:
    plain = media.partition(";")[0].strip().lower()
    texts = ("application/xml", "application/yaml", "application/x-yaml", "application/javascript", "application/sdp")
    lines = (
        "application/jsonl",
        "application/x-jsonl",
        "application/x-ndjson",
        "application/x-jsonlines",
        "application/graphql",
        "application/csv",
    )
    return plain.startswith("text/") or plain.endswith(("+xml", "+yaml")) or plain in texts or plain in lines


def _is_object(found: Type) -> bool:
    return isinstance(found, Model | MapOf)


def _resolved(document: Document, place: Node) -> Mapping[str, Any]:
    try:
        return document.resolve(place).mapping
    except DocumentError:
        return {}


def module_names(found: list[Found]) -> list[str]:
    """The group of each operation, which become modules: its first tag, else the first part of its path that tells."""
    parts = [[part for part in each.path.split("/") if part] for each in found if not each.tags]
    common = 0
    while (
        len(parts) > 1 and all(len(each) > common + 1 for each in parts) and len({each[common] for each in parts}) == 1
    ):
        common += 1

    def group(each: Found) -> str:
        if each.tags:
            return each.tags[0]
        own = [part for part in each.path.split("/") if part][common:]
        fixed = (part.split(".")[0] for part in own if not part.startswith("{"))
        return next((part for part in fixed if snake(part, "")), "operations")

    return [group(each) for each in found]


# --- Authentication ------------------------------------------------------------------------------------------


class Security:
    """What the document wants of credentials, put into the upstream client's settings."""

    def __init__(self, document: Document, report: Report) -> None:
        self.document = document
        self.report = report
        self.schemes: dict[str, Node] = {}
        for name, node in document.root.get("components").get("securitySchemes").entries():
            try:
                self.schemes[name] = document.resolve(node)
            except DocumentError as error:
                report.add("authentication", node.pointer, str(error).removeprefix(f"{node.pointer}: "))
        self.headers = frozenset(
            str(node.mapping.get("name", "")).lower()
            for node in self.schemes.values()
            if node.mapping.get("type") == "apiKey" and node.mapping.get("in") == "header"
        )
        self.used: dict[str, int] = {}
        """How many operations accept each scheme."""
        self.without = 0
        """How many want no credentials."""

    def check(self, operation: Node) -> None:
        wanted = operation.mapping.get("security", self.document.root.mapping.get("security"))
        place = f"{operation.pointer}/security"
        together = [each for each in listed(wanted) if isinstance(each, dict)]
        if not together or {} in together:
            self.without += 1
            return
        for each in together:
            for name in each:
                self.used[name] = self.used.get(name, 0) + 1
        if all(len(each) > 1 for each in together):
            names = " and ".join(one_line(name, 40) for name in together[0])
            self.report.add("authentication", place, f"wants {names} together; the client sends one of them")

    def advice(self, key: str) -> list[str]:
        """What to set, a line each; `key` is the variable with the API's key."""
        lines: list[str] = []
        for name in sorted(self.used, key=lambda each: -self.used[each]):
            node = self.schemes.get(name)
            shown = f"{one_line(name, 60)} ({self.used[name]} operations)"
            if node is None:
                self.report.add(
                    "authentication", "#/components/securitySchemes", f"{one_line(name, 60)} is not described"
                )
                continue
            lines.append(f"{shown}: {self._settings(node, key)}")
        return lines

    def _settings(self, node: Node, key: str) -> str:
        about = node.mapping
        kind, where, called = about.get("type"), about.get("in"), one_line(about.get("name"), 80)
        scheme = str(about.get("scheme", "")).lower()
        if kind == "apiKey" and where == "header" and TOKEN.fullmatch(called):
            if called.lower() == "authorization":
                return (
                    f"set {key}; it is sent as Authorization: Bearer <key>. "
                    "With another scheme set UPSTREAM_API_KEY_SCHEME as well (none: the key alone)"
                )
            return f"set {key}, and UPSTREAM_API_KEY_HEADER={called}"
        if kind == "apiKey" and where == "query" and called:
            return f"set {key}, and UPSTREAM_API_KEY_QUERY={called}"
        if kind == "apiKey" and where == "cookie" and TOKEN.fullmatch(called):
            return f"set {key} to {called}=<key>, and UPSTREAM_API_KEY_HEADER=Cookie"
        if kind == "http" and scheme == "bearer":
            return f"set {key}; it is sent as Authorization: Bearer <key>"
        if kind == "http" and scheme == "basic":
            return f"set {key} to <user>:<password>, and UPSTREAM_API_KEY_SCHEME=Basic"
        if kind in ("oauth2", "openIdConnect"):
            self.report.add(
                "authentication", node.pointer, "tokens are not asked for nor renewed; a token that you have is sent"
            )
            return f"set {key} to an access token; getting and renewing one is left to you"
        if kind == "http" and TOKEN.fullmatch(scheme):
            self.report.add("authentication", node.pointer, f"scheme {scheme}: sent as given, nothing is computed")
            return f"set {key}, and UPSTREAM_API_KEY_SCHEME={scheme}; what has to be computed is left to you"
        self.report.add("authentication", node.pointer, f"type {one_line(str(kind), 40)!r} is not spoken")
        return "not spoken by the client; see docs/client.md"
