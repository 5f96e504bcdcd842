"""An MCP server. Its tools are in `tools/`; what runs them in production is in `production/`."""
