"""Architectures by name: a decorated function is all that a new one needs.

    @register_architecture("mynet")
    def mynet(*, num_classes: int, in_channels: int, width: Annotated[int, Field(ge=1)] = 32) -> nn.Module:
        return MyNet(...)

`num_classes` and `in_channels` (and `image_size`, where the function names it) come from the data
set; every other keyword is an option, checked by its type hint and recorded in the model's card.
Other packages register theirs through the entry-point group `sam_bench.architectures`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import create_model as make_settings
from torch import nn

from sam_bench.errors import InputError, shortened, unknown_name
from sam_bench.plugins import PlugIns
from sam_bench.records import first_problem
from sam_bench.registry import defined_again

FROM_DATA = ("num_classes", "in_channels", "image_size")
ENTRY_POINTS = "sam_bench.architectures"

_UNWRITTEN = {"activation": "relu"}
"""Options younger than the first cards, with the value that all networks had before: it is not written."""

F = TypeVar("F", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ArchitectureEntry:
    """A registered architecture: how to build it and what options it takes."""

    name: str
    build: Callable[..., nn.Module]
    settings: type[BaseModel]
    takes: tuple[str, ...]

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with defaults filled in; one of `_UNWRITTEN` is left out, so that old and new cards agree.

        Raises:
            InputError: An option the architecture does not take, or a value of the wrong type or range.
        """
        fields = self.settings.model_fields
        unknown = sorted(set(options) - set(fields))
        if unknown:
            takes = ", ".join(fields) or "no options"
            raise InputError(f"architecture {self.name!r} has no option {shortened(unknown[0])!r}; it takes {takes}")
        try:
            checked = self.settings(**options).model_dump(mode="json")
        except ValidationError as error:
            raise InputError(f"architecture {self.name!r}: {first_problem(error)}") from error
        return {key: value for key, value in checked.items() if _UNWRITTEN.get(key) != value}


_ENTRIES: dict[str, ArchitectureEntry] = {}
PLUGINS = PlugIns(ENTRY_POINTS)
_plugins_loaded = False


def register_architecture(name: str) -> Callable[[F], F]:
    """Function decorator: make the network that the function builds available as `name`.

    Args:
        name: The public name. It stays: cards refer to it.

    Raises:
        ValueError: The name is taken, contains ':', or a parameter is not keyword-only, has no type
            hint, or (an option) no default.
    """

    def decorate(function: F) -> F:
        if name in _ENTRIES and not defined_again(_ENTRIES[name].build, function):
            raise ValueError(f"architecture {name!r} is registered twice")
        if ":" in name:
            raise ValueError(f"architecture {name!r}: ':' is kept for prefixes such as 'timm:'")
        parameters = inspect.signature(function).parameters
        hints = get_type_hints(function, include_extras=True)
        options: dict[str, Any] = {}
        for key, parameter in parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or key not in hints:
                raise ValueError(f"architecture {name!r}: parameter {key!r} must be keyword-only and have a type hint")
            if key in FROM_DATA:
                continue
            if parameter.default is inspect.Parameter.empty:
                raise ValueError(f"architecture {name!r}: option {key!r} needs a default")
            options[key] = (hints[key], parameter.default)
        # Strict: '--width 16.5' or True for a width is a mistake, not something to round.
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        settings = make_settings(f"{name}_options", __config__=config, **options)
        takes = tuple(key for key in FROM_DATA if key in parameters)
        _ENTRIES[name] = ArchitectureEntry(name=name, build=function, settings=settings, takes=takes)
        return function

    return decorate


def _load_plugins() -> None:
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for _ in PLUGINS.load(lambda _: None, lambda _: None):  # each registers itself as it is imported
            pass


def architectures() -> list[str]:
    """The names of the registered architectures; any timm model comes on top, as 'timm:NAME'."""
    _load_plugins()
    return sorted(_ENTRIES)


def architecture_options(name: str) -> type[BaseModel]:
    """The options of a registered architecture as a pydantic model: names, types, defaults, descriptions.

    Raises:
        InputError: There is no such architecture.
    """
    return architecture_entry(name).settings


def architecture_module(name: str) -> str:
    """The module of a registered architecture; "" of `timm:NAME` and `python:MODULE:FACTORY`."""
    return "" if ":" in name else architecture_entry(name).build.__module__


def architecture_entry(name: str) -> ArchitectureEntry:
    """The entry registered as `name`.

    Raises:
        InputError: There is none; names the nearest and all.
    """
    _load_plugins()
    if name not in _ENTRIES and name in PLUGINS.broken:
        raise InputError(f"architecture {PLUGINS.broken[name]}")
    if name not in _ENTRIES:
        raise unknown_name("architecture", name, [*_ENTRIES, "timm:NAME"])
    return _ENTRIES[name]
