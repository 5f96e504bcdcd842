"""Names that the generated modules import, and that nothing in them may shadow."""

from __future__ import annotations

LIBRARY_IMPORTS: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (
    (("typing", ("Annotated", "Any", "Literal")),),
    (
        ("mcp.server.mcpserver", ("Context", "MCPServer")),
        ("pydantic", ("ConfigDict", "Field")),
    ),
)
"""Names that the generated modules import, by module: the standard library's, then those of others."""

RUNTIME_MODULE = "..production.openapi"
"""The run-time part of the tools, a file of the template."""

POLICY_IMPORT = "from ..production import policy\n"
"""The import of the decorator with the scopes that a tool needs."""

DOCUMENT_IMPORT = "from ..production.openapi_document import describe\n"
"""The import of the module that describes the document."""

RUNTIME_NAMES = (
    "CHANGES",
    "READ_ONLY",
    "REPLACES",
    "Answer",
    "ApiModel",
    "Binary",
    "Done",
    "Number",
    "Omittable",
    "UploadFile",
    "add",
    "binary_body",
    "call",
    "deep",
    "exploded",
    "form",
    "form_body",
    "in_json",
    "json_body",
    "json_lines_body",
    "json_text",
    "label",
    "matrix",
    "multipart_body",
    "simple",
    "text_body",
    "to_json",
)
"""Names that the generated modules import from there, in the order of a sorted import."""

MODELS_IMPORT = "from . import _models as models\n"

CONTEXT = "ctx"
"""The parameter of every tool that has the context of the call."""

OWN_NAMES = ("models", "policy", "register", "server", CONTEXT)
"""Names that every module of tools defines, or uses in its functions."""

IMPORTED_NAMES = frozenset(
    (*(name for section in LIBRARY_IMPORTS for _, names in section for name in names), *RUNTIME_NAMES, *OWN_NAMES)
)

MODELS_NAMES = ("Annotated", "Any", "Literal", "ConfigDict", "Field", "ApiModel", "Number", "Omittable", "UploadFile")
"""Those that the module of models imports."""
