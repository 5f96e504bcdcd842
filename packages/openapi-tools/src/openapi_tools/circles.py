"""Takes circles of many schemas apart, so that one tool does not carry all of them.

In some documents every object leads to every other one (each "expandable" into the next). The schema of any answer
would then be that of the whole API, and the list of tools hundreds of megabytes.
"""

from __future__ import annotations

from .report import Report
from .schemas import Alias, Anything, ListOf, MapOf, Model, Type, Union, models_in

MAX_CIRCLE = 12
"""Schemas that may lead to each other: a tree, a condition of conditions, a thread with its messages."""


def cut_circles(models: list[Model], report: Report) -> None:
    """Has each model of a larger circle take any object where another named model of that circle stood."""
    for circle in circles(models):
        if len(circle) > MAX_CIRCLE:
            inside = frozenset(model for model in circle if model.named)
            for model in circle:
                for each in model.properties:
                    each.type = without(each.type, inside)
                if model.named:
                    text = f"one of {len(inside)} schemas that lead to each other; in it, another of them is any object"
                    report.add("schema", model.pointer, text)


def without(found: Type, cut: frozenset[Model], within: tuple[Type, ...] = ()) -> Type:
    """`found` with any object in the place of those models."""
    if isinstance(found, Model):
        return MapOf(Anything()) if found in cut else found
    if cut.isdisjoint(models_in(found)):
        return found
    if isinstance(found, ListOf):
        return ListOf(without(found.item, cut, within), found.limits)
    if isinstance(found, MapOf):
        return MapOf(without(found.value, cut, within))
    if isinstance(found, Union):
        return Union(tuple(dict.fromkeys(without(option, cut, within) for option in found.options)))
    if isinstance(found, Alias) and found.target is not None and found not in within:
        return without(found.target, cut, (*within, found))
    return Anything()


def circles(models: list[Model]) -> list[list[Model]]:
    """The models by which of them lead to each other (Tarjan's strongly connected components), in a fixed order."""
    index: dict[Model, int] = {}
    low: dict[Model, int] = {}
    waiting: dict[Model, None] = {}
    found: list[list[Model]] = []
    for first in models:
        if first in index:
            continue
        ahead = [(first, iter(next_models(first)))]
        index[first] = low[first] = len(index)
        waiting[first] = None
        while ahead:
            model, following = ahead[-1]
            after = next(following, None)
            if after is None:
                ahead.pop()
                if ahead:
                    low[ahead[-1][0]] = min(low[ahead[-1][0]], low[model])
                if low[model] == index[model]:
                    circle: list[Model] = []
                    while not circle or circle[-1] is not model:
                        circle.append(waiting.popitem()[0])
                    found.append(circle[::-1])
            elif after not in index:
                index[after] = low[after] = len(index)
                waiting[after] = None
                ahead.append((after, iter(next_models(after))))
            elif after in waiting:
                low[model] = min(low[model], index[after])
    return found


def next_models(model: Model) -> list[Model]:
    return list(dict.fromkeys(each for prop in model.properties for each in models_in(prop.type)))
