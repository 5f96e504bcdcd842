"""Sphinx's configuration of the site that `docs/build.py` makes."""

project = "A template for production MCP servers"
author = "its contributors"
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
extensions = ["myst_parser"]
include_patterns = [
    "*.md",
    "benchmarks/**.md",
    "docs/**.md",
    "examples/README.md",
    "hooks/migrations/README.md",
    "packages/openapi-tools/README.md",
    "template/AGENTS.md",
    "template/README.md",
    "template/docs/*.md",
]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
# Blocks of JSON may have an ellipsis, and the table of the benchmarks is part of another page.
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
