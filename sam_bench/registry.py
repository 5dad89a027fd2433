"""Registries: a name, a class, and nothing else to edit.

A component is a pydantic model whose fields are its settings. Registering it under a name makes it
usable in a recipe, and its fields become command-line options with their descriptions as help.
Other packages add theirs through entry points.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from sam_bench.errors import InputError, unknown_name, with_field
from sam_bench.plugins import PlugIns
from sam_bench.records import ComponentSpec, first_problem

_NUMBERS = (int, float, int | None, float | None)


class Component(BaseModel):
    """Base of everything a recipe names: fields are settings, checked on construction.

    State that changes while training is kept in private attributes; it is saved and restored
    through `state_dict` and `load_state_dict`, so that a resumed run continues as if uninterrupted.

    Raises:
        InputError: A setting is unknown or its value wrong; names the setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    method: ClassVar[str] = "none"

    def __init__(self, /, **settings: Any) -> None:
        fields = type(self).model_fields
        for name, value in settings.items():
            if name not in fields:
                raise unknown_name(f"setting of {type(self).__name__}", name, fields)
            if isinstance(value, bool) and fields[name].annotation in _NUMBERS:  # YAML's `rho: on` would be 1
                raise InputError(with_field(f"{name}: must be a number, not {str(value).lower()}"))
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError(with_field(first_problem(error))) from None  # pydantic's own text takes many lines

    def __getstate__(self) -> dict[Any, Any]:
        """What pickle keeps: the name, too."""
        return {**super().__getstate__(), "method": self.method}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Take what pickle kept.

        Another package's class gets its name when a registry loads its entry point. A worker process, which is only
        sent the component, imports the class and asks no registry.
        """
        type(self).method = state["method"]
        super().__setstate__({key: value for key, value in state.items() if key != "method"})

    def spec(self) -> ComponentSpec:
        """The component as a recipe stores it: the name and every setting, defaults filled in."""
        return ComponentSpec(method=self.method, **self.model_dump(mode="json"))

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart; nothing for a component without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that each registers what it defines: a new method is a new file."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def defined_again(known: Any, found: Any) -> bool:
    """Whether a name is free, or its owner is run once more: a notebook's cell, or a module that is reloaded."""
    if known is None or known is found:
        return known is None
    return (known.__module__, known.__qualname__) == (found.__module__, found.__qualname__)


C = TypeVar("C", bound=Component)
D = TypeVar("D", bound=Component)


class Registry(Generic[C]):
    """Named component classes of one kind.

    Args:
        kind: What one is called in messages: "weight perturbation".
        field: The recipe's field that names it: "weights".
        group: Entry-point group through which other packages register theirs.
        base: What every class derives from.
    """

    def __init__(self, *, kind: str, field: str, group: str, base: type[Component] = Component) -> None:
        self.kind, self.field, self.plugins, self._base = kind, field, PlugIns(group), base
        self._classes: dict[str, type[C]] = {}
        self._families: dict[str, Callable[[str], type[C]]] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[type[D]], type[D]]:
        """Class decorator: make the class available as `name`.

        Its type stays the class's own: an editor would offer the settings of the base class otherwise.
        """

        def decorate(cls: type[D]) -> type[D]:
            if not defined_again(self._classes.get(name), cls):
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            cls.method = name
            self._classes[name] = cast("type[C]", cls)
            return cls

        return decorate

    def family(self, prefix: str) -> Callable[[Callable[[str], type[C]]], Callable[[str], type[C]]]:
        """Function decorator: `prefix:NAME` is the class that the function makes for NAME, when it is asked for."""

        def decorate(make: Callable[[str], type[C]]) -> Callable[[str], type[C]]:
            self._families[prefix] = make
            return make

        return decorate

    def families(self) -> list[str]:
        """How names look that are made when they are asked for: `prefix:NAME`."""
        return [f"{prefix}:NAME" for prefix in sorted(self._families)]

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for name, cls in self.plugins.load(self._classes.get, self._unfit):
            self.register(name)(cls)

    def _unfit(self, found: Any) -> str | None:
        """What is wrong with something that another package registers; None where nothing is."""
        if isinstance(found, type) and issubclass(found, self._base):
            return None
        return f"it is no {self.kind}, a class derived from {self._base.__name__}"

    def names(self) -> list[str]:
        """Every registered name, other packages' included."""
        self._load_plugins()
        return sorted(self._classes)

    def __iter__(self) -> Iterator[type[C]]:
        return (self._classes[name] for name in self.names())

    def get(self, name: str) -> type[C]:
        """The class registered as `name`, or made for it by the family it belongs to.

        Raises:
            InputError: There is none; names the nearest and all.
        """
        self._load_plugins()
        prefix, colon, member = name.partition(":")
        if colon and prefix in self._families:
            return self._families[prefix](member)
        if name in self.plugins.broken:
            raise InputError(f"{self.kind} {self.plugins.broken[name]}")
        if name not in self._classes:
            raise unknown_name(self.kind, name, [*self._classes, *self.families()])
        return self._classes[name]

    def build(self, spec: ComponentSpec) -> C:
        """The component that a recipe's `spec` describes.

        Raises:
            InputError: Unknown method, unknown setting, or a value out of range; names the field.
        """
        cls = self.get(spec.method)
        foreign = sorted(set(spec.settings) - set(cls.model_fields))
        if foreign:
            takes = ", ".join(cls.model_fields) or "no settings"
            raise InputError(f"`{self.field}.{foreign[0]}`: {self.kind} {spec.method!r} takes {takes}")
        try:
            return cls(**spec.settings)
        except InputError as error:
            raise InputError(with_field(str(error), self.field)) from error
