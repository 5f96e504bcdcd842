"""The template's own tests: `uv run pytest`, or `uv run pytest -m "not slow"` for the quick ones."""

import sys
from pathlib import Path

# As pytest's setting `pythonpath` does, for commands such as `python -m tests.release`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "hooks"))
