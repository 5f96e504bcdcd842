"""Large groups of schemas that are recursive through each other, cut so that a tool does not contain all of them.

In some documents most objects refer to each other, each expandable into the next. The JSON schema of any tool would
then contain every schema of the API, and the list of tools would have hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from .python_types import AnyType, ListType, MapType, Model, NamedType, Type, UnionType, models_in
from .report import Report

MAX_RECURSIVE_GROUP = 12
"""Models that may refer to each other: enough for trees, nested conditions, or a thread and its messages."""


def cut_large_recursive_groups(models: list[Model], report: Report) -> None:
    """In each large group, replace references between its named models with any object."""
    for group in strongly_connected_components(models):
        if len(group) <= MAX_RECURSIVE_GROUP:
            continue
        named = frozenset(model for model in group if model.is_named)
        for model in group:
            for prop in model.properties:
                prop.type = replace_models(prop.type, named)
            if model.is_named:
                text = f"one of {len(named)} schemas that refer to each other; in it, the others are any object"
                report.add("schema", model.pointer, text)


def replace_models(type_: Type, replaced: frozenset[Model], enclosing: tuple[Type, ...] = ()) -> Type:
    """Return `type_` with any object in place of the `replaced` models."""
    if isinstance(type_, Model):
        return MapType(AnyType()) if type_ in replaced else type_
    if replaced.isdisjoint(models_in(type_)):
        return type_
    if isinstance(type_, ListType):
        return ListType(replace_models(type_.item, replaced, enclosing), type_.constraints)
    if isinstance(type_, MapType):
        return MapType(replace_models(type_.value, replaced, enclosing))
    if isinstance(type_, UnionType):
        options = (replace_models(option, replaced, enclosing) for option in type_.options)
        return UnionType(tuple(dict.fromkeys(options)))
    if isinstance(type_, NamedType) and type_.target is not None and type_ not in enclosing:
        return replace_models(type_.target, replaced, (*enclosing, type_))
    return AnyType()


def strongly_connected_components(models: list[Model]) -> list[list[Model]]:
    """Return the groups of models that refer to each other, by Tarjan's algorithm without recursion."""
    index: dict[Model, int] = {}
    lowest: dict[Model, int] = {}
    stack: dict[Model, None] = {}
    components: list[list[Model]] = []

    def enter(model: Model) -> tuple[Model, Iterator[Model]]:
        index[model] = lowest[model] = len(index)
        stack[model] = None
        return model, iter(dict.fromkeys(model.referenced_models()))

    for root in models:
        if root in index:
            continue
        path = [enter(root)]
        while path:
            model, references = path[-1]
            reference = next(references, None)
            if reference is None:
                path.pop()
                if path:
                    parent = path[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[model])
                if lowest[model] == index[model]:
                    components.append(pop_component(stack, model))
            elif reference not in index:
                path.append(enter(reference))
            elif reference in stack:
                lowest[model] = min(lowest[model], index[reference])
    return components


def pop_component(stack: dict[Model, None], root: Model) -> list[Model]:
    """Take the models from the stack down to `root`, and return them in the order in which they were entered."""
    component: list[Model] = []
    while not component or component[-1] is not root:
        component.append(stack.popitem()[0])
    return component[::-1]
