"""The template's own tests: `uv run pytest`, or `uv run pytest -m "not slow"` for the quick ones."""
