"""The Python types that schemas are converted to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .text import grouped_literal

Direction = Literal["request", "response"]

Constraints = tuple[tuple[str, Any], ...]
"""Arguments of pydantic's `Field`."""


class Type(ABC):
    """A type that the generated source annotates values with."""

    @abstractmethod
    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        """Return the source of the annotation.

        Args:
            prefix: Put before the names of models, such as `models.`.
            enclosing: The named types that this one is part of.
        """


@dataclass(frozen=True)
class AnyType(Type):
    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        return "Any"


@dataclass(frozen=True)
class NullType(Type):
    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        return "None"


@dataclass(frozen=True)
class ScalarType(Type):
    """A string, number or boolean."""

    kind: Literal["str", "int", "Number", "bool"]
    constraints: Constraints = ()
    format: str = ""

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        arguments = [f"{name}={grouped_literal(value)}" for name, value in self.constraints]
        if self.format:
            arguments.append(f'json_schema_extra={{"format": {grouped_literal(self.format)}}}')
        return f"Annotated[{self.kind}, Field({', '.join(arguments)})]" if arguments else self.kind

    def constraint(self, name: str, default: Any = None) -> Any:
        return dict(self.constraints).get(name, default)


@dataclass(frozen=True)
class FileType(Type):
    """A file of a multipart body."""

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        return "UploadFile"


@dataclass(frozen=True)
class EnumType(Type):
    """One of some strings, integers and booleans."""

    values: tuple[Any, ...]
    is_open: bool
    """Whether other values of the same types are accepted, since a later version of the API may add some."""

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        known = f"Literal[{', '.join(map(grouped_literal, self.values))}]"
        kinds = dict.fromkeys(type(value).__name__ for value in self.values)
        return " | ".join([known, *kinds]) if self.is_open else known


@dataclass(frozen=True)
class ListType(Type):
    item: Type
    constraints: Constraints = ()

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        unconstrained = f"list[{self.item.annotation(prefix, enclosing)}]"
        arguments = ", ".join(f"{name}={value}" for name, value in self.constraints)
        return f"Annotated[{unconstrained}, Field({arguments})]" if arguments else unconstrained

    def constraint(self, name: str, default: Any = None) -> Any:
        return dict(self.constraints).get(name, default)


@dataclass(frozen=True)
class MapType(Type):
    """An object with any property names."""

    value: Type

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        return f"dict[str, {self.value.annotation(prefix, enclosing)}]"


@dataclass(frozen=True)
class UnionType(Type):
    options: tuple[Type, ...]

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        sources = dict.fromkeys(option.annotation(prefix, around) for option, around in flatten(self, enclosing))
        if "Any" in sources:
            return "Any"
        if "None" in sources:  # last, as is the custom
            sources["None"] = sources.pop("None")
        return " | ".join(sources)


@dataclass(eq=False)
class NamedType(Type):
    """A schema with a name that is not converted to a class: its target is written out where it is used."""

    target: Type | None = None
    is_recursive: bool = False
    """Whether the type contains itself, found out while its annotation is made."""
    weight: int = 0
    """As `weight_of` has found it, 0 before."""

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        if self.target is None or self in enclosing:  # such as a list of itself, which only a class can express
            self.is_recursive = True
            return "Any"
        return self.target.annotation(prefix, (*enclosing, self))


@dataclass
class Property:
    name: str
    """The field's name in Python."""
    api_name: str
    type: Type
    required: bool
    description: str = ""
    file_media_type: str = ""
    """Set where the property is a file, which the model gives in base64."""
    kinds: tuple[str, ...] = ()
    """The values that select the class, where a discriminator names the property."""


@dataclass(eq=False)
class Model(Type):
    """A class of the generated source."""

    name: str
    description: str = ""
    properties: list[Property] = field(default_factory=list)
    forbids_extra: bool = False
    direction: Direction = "response"
    pointer: str = ""
    is_named: bool = False
    """Whether the document has the schema under a name, rather than inline."""

    def annotation(self, prefix: str = "", enclosing: tuple[Type, ...] = ()) -> str:
        return prefix + self.name

    def referenced_models(self) -> Iterator[Model]:
        """Yield the models of the properties."""
        for prop in self.properties:
            yield from models_in(prop.type)


def union_options(type_: Type) -> list[Type]:
    """Return the options of a union, with those of unions inside it; another type is its own only option."""
    return [option for option, _ in flatten(type_, ())]


def flatten(type_: Type, enclosing: tuple[Type, ...]) -> Iterator[tuple[Type, tuple[Type, ...]]]:
    """Yield the options of a union, each with the named types that it is part of."""
    if isinstance(type_, UnionType):
        for option in type_.options:
            yield from flatten(option, enclosing)
    elif isinstance(type_, NamedType) and isinstance(type_.target, UnionType | NamedType) and type_ not in enclosing:
        yield from flatten(type_.target, (*enclosing, type_))
    else:
        yield type_, enclosing


def weight_of(type_: Type) -> int:
    """Return how many types the annotation of a type has; that of a type which is not known yet counts as one."""
    if isinstance(type_, UnionType):
        return sum(map(weight_of, type_.options))
    if isinstance(type_, ListType):
        return 1 + weight_of(type_.item)
    if isinstance(type_, MapType):
        return 1 + weight_of(type_.value)
    if isinstance(type_, NamedType):
        if not type_.weight:
            type_.weight = 1  # where it contains itself
            type_.weight = weight_of(type_.target) if type_.target is not None else 0
        return max(type_.weight, 1)
    return 1


def union_of(options: Sequence[Type]) -> Type:
    """Return the union of some types, or the only type among them."""
    unique = list(dict.fromkeys(options))
    return unique[0] if len(unique) == 1 else UnionType(tuple(unique))


def with_null(type_: Type) -> Type:
    """Return a type that also accepts null."""
    if any(isinstance(option, NullType) for option in union_options(type_)):
        return type_
    return UnionType((type_, NullType()))


def accepts_null(type_: Type) -> bool:
    return any(isinstance(option, NullType | AnyType) for option in union_options(type_))


def classes_of(type_: Type) -> Iterator[Model]:
    """Yield the models among the options of a type."""
    for option in union_options(type_):
        target = option.target if isinstance(option, NamedType) else option
        if isinstance(target, Model):
            yield target


def without_null(type_: Type) -> list[Type]:
    """Return the options of a type other than null."""
    return [option for option in union_options(type_) if not isinstance(option, NullType)]


def is_object(type_: Type) -> bool:
    return isinstance(type_, Model | MapType)


def models_in(type_: Type, enclosing: tuple[Type, ...] = ()) -> Iterator[Model]:
    """Yield the models that a type names, without those that these refer to."""
    if isinstance(type_, Model):
        yield type_
    elif isinstance(type_, ListType):
        yield from models_in(type_.item, enclosing)
    elif isinstance(type_, MapType):
        yield from models_in(type_.value, enclosing)
    elif isinstance(type_, UnionType):
        for option in type_.options:
            yield from models_in(option, enclosing)
    elif isinstance(type_, NamedType) and type_.target is not None and type_ not in enclosing:
        yield from models_in(type_.target, (*enclosing, type_))


def reachable_models(types: Iterable[Type]) -> set[Model]:
    """Return the models that these types refer to, directly or through other models."""
    reached: set[Model] = set()
    stack = [model for type_ in types for model in models_in(type_)]
    while stack:
        model = stack.pop()
        if model not in reached:
            reached.add(model)
            stack += model.referenced_models()
    return reached
