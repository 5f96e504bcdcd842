"""An MCP server: its tools are in `tools/`, the production layer is in `production/`."""
