"""Selection of tools: those that `TOOLS_ALLOW`, `TOOLS_DENY` or `READ_ONLY` exclude are not registered."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mcp_types import ToolAnnotations

from ..config import StartError
from ..registry import Registry


def install(registry: Registry) -> None:
    """Leave out the tools that the settings exclude."""
    config = registry.config
    settings = {"TOOLS_ALLOW": config.tools_allow, "TOOLS_DENY": config.tools_deny}
    if not (config.read_only or any(settings.values())):
        return
    names: set[str] = set()

    def is_hidden(name: str, annotations: ToolAnnotations | None) -> bool:
        names.add(name)
        if config.read_only and not (annotations and annotations.read_only_hint):
            return True
        allowed = not config.tools_allow or _matches(name, config.tools_allow)
        return not allowed or _matches(name, config.tools_deny)

    def check() -> None:
        problems = [
            f"{setting}: {pattern!r} matches no tool of this server"
            for setting, patterns in settings.items()
            for pattern in patterns
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        if problems:
            raise StartError("\n".join(problems))

    registry.tools.is_hidden = is_hidden
    registry.on_registered.append(check)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
