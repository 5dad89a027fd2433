"""Settings read off the constructor of a class that is not ours."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Collection
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from sam_bench.records import Radius

_SIMPLE = (bool, int, float, str, types.NoneType)


def _number(value: Any) -> Any:
    """Fractions as radii are written: 2/255."""
    return float(Radius(value)) if isinstance(value, str) and "/" in value else value


def _whole(value: float) -> float:
    """An int where it is one, as code that counts with it needs."""
    return int(value) if value.is_integer() else value


Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[float, BeforeValidator(_number), AfterValidator(_whole)]
"""What is a whole number by default: how many, or a factor that may be any."""


def settings_of(constructor: type, *, but: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What can be said to a constructor in a command or a file: numbers, texts, flags and tuples of them.

    Args:
        constructor: The class.
        but: Parameters that are not settings.

    Returns:
        Fields as `pydantic.create_model` takes them: name to type and default.
    """
    found = {}
    for parameter in _parameters(constructor):
        kind = _type_of(parameter)
        if parameter.name not in but and kind is not None:
            default = ... if parameter.default is parameter.empty else parameter.default
            text = f"parameter {parameter.name} of {constructor.__module__.split('.')[0]}'s {constructor.__name__}"
            found[parameter.name] = (kind, Field(default=default, description=text))
    return found


def parameters(constructor: type) -> set[str]:
    """Names of all its parameters."""
    return {parameter.name for parameter in _parameters(constructor)}


def unsayable(constructor: type, *, but: Collection[str] = ()) -> list[str]:
    """Parameters without a default that nothing in a command can stand for: an object, a data loader."""
    return [
        parameter.name
        for parameter in _parameters(constructor)
        if parameter.name not in but and parameter.default is parameter.empty and _type_of(parameter) is None
    ]


def _parameters(constructor: type) -> list[inspect.Parameter]:
    every = inspect.signature(constructor).parameters.values()
    return [each for each in every if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def _type_of(parameter: inspect.Parameter) -> Any:
    """The type of a setting; None for what is none."""
    if parameter.annotation is not parameter.empty:
        return _simplified(parameter.annotation)
    default = parameter.default
    if isinstance(default, bool):
        return bool
    if isinstance(default, int):
        return Count
    if isinstance(default, float):
        return Number
    if isinstance(default, str):
        return str
    return tuple[Any, ...] if isinstance(default, tuple) else None


def _simplified(annotation: Any) -> Any:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is float:
        return Number
    if annotation in _SIMPLE or origin is typing.Literal:
        return annotation
    if origin in (typing.Union, types.UnionType, tuple):
        parts = [_simplified(each) for each in inner]
        if all(part is not None for part in parts):
            return tuple[tuple(parts)] if origin is tuple else reduce(or_, parts)  # type: ignore[misc]
    return None
