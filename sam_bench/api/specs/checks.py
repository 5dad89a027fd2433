"""The checks of specs' fields: NumPy's numbers, paths and devices become what the field holds, or are refused."""

from __future__ import annotations

import operator
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np
import torch
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from sam_bench.errors import InputError
from sam_bench.records import Radius, Recipe
from sam_bench.seeds import check_seed

StrPath = str | os.PathLike[str]


class Check:
    """A step before pydantic's own: a value becomes what the field holds, or an `InputError` says what is wrong.

    The field's name is added to the error by the spec. None passes where the field may be None.
    """

    def __call__(self, value: Any) -> Any:
        """The value as the field holds it."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Run before the type's own check."""
        optional = get_origin(source) in (Union, types.UnionType) and type(None) in get_args(source)

        def check(value: Any) -> Any:
            return None if value is None and optional else self(value)

        return core_schema.no_info_before_validator_function(check, handler(source))


@dataclass(frozen=True)
class Whole(Check):
    """A whole number of any type, such as NumPy's, from `least` up; or one of `words`."""

    least: int | None = None
    words: tuple[str, ...] = ()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.words:
            return value
        try:
            number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except TypeError:
            number = None
        if number is None or (self.least is not None and number < self.least):
            bound = "" if self.least is None else f" of at least {self.least}"
            raise InputError(f"must be a whole number{bound}, not {value!r}")
        return number


@dataclass(frozen=True)
class Positive(Check):
    """A number above 0 of any type."""

    def __call__(self, value: Any) -> float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not float(value) > 0:
            raise InputError(f"must be a number above 0, not {named(value)}")
        return float(value)


@dataclass(frozen=True)
class Seed(Whole):
    """A seed that a random generator can take."""

    def __call__(self, value: Any) -> int:
        number: int = super().__call__(value)
        check_seed(number)
        return number


@dataclass(frozen=True)
class Text(Check):
    """A text; `like` says in words what would be right. With `paths` a path is kept as its text."""

    like: str = "a text"
    paths: bool = False

    def __call__(self, value: Any) -> str:
        if self.paths and isinstance(value, Path):
            return str(value)
        if not isinstance(value, str):
            raise InputError(f"must be {self.like}, not {named(value)}")
        return value


@dataclass(frozen=True)
class Data(Check):
    """A data set: a name, or a path, which is kept as its text."""

    def __call__(self, value: Any) -> str:
        if isinstance(value, (str, Path)):
            return str(value)
        arrays = ": write arrays into a file with numpy.savez('mine.npz', x_test=…, y_test=…), and give 'mine.npz'"
        advice = "" if value is None else arrays
        raise InputError(f"must be a name, a FILE.npz or a FOLDER, not {named(value)}{advice}")


@dataclass(frozen=True)
class Device(Check):
    """A device's name, or a `torch.device`, which has one."""

    def __call__(self, value: Any) -> str:
        return Text("auto, cpu or cuda")(str(value) if isinstance(value, torch.device) else value)


@dataclass(frozen=True)
class Length(Check):
    """A radius, however it was written; of a NumPy float32 the shortest decimal that is the same float32."""

    def __call__(self, value: Any) -> Radius:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (str, Real)):
            raise InputError(f"must be a number or a text such as '8/255', not {named(value)}")
        narrow = isinstance(value, np.floating) and not isinstance(value, float)
        try:
            return Radius(str(value) if narrow else value)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f": {error}") from error


@dataclass(frozen=True)
class Lengths(Check):
    """One radius or several: a text such as `1/255,2/255`, a number, or a row of either."""

    def __call__(self, value: Any) -> tuple[Radius, ...]:
        several = _one_by_one(value)
        if not several:
            raise InputError("names no radius; give one or several, as in 1/255,2/255, or leave it out")
        found: list[Radius] = []
        for each in several:
            radius = Length()(each)
            if float(radius) in map(float, found):
                raise InputError(f"has {radius} twice; take one of them away")
            found.append(radius)
        return tuple(found)


def _one_by_one(radii: Any) -> list[Any]:
    if isinstance(radii, str):
        return radii.split(",") if radii else []
    try:
        return list(radii)
    except TypeError:  # a single one
        return [radii]


@dataclass(frozen=True)
class Place(Check):
    """A path. `folder` says whether it is a folder's or a file's."""

    folder: bool = True

    def __call__(self, value: Any) -> Path:
        if not isinstance(value, (str, os.PathLike)):
            raise InputError(f"must be a path, not {named(value)}")
        return Path(value)


@dataclass(frozen=True)
class Settings(Check):
    """Settings by their names; None stands for none."""

    def __call__(self, value: Any) -> dict[str, Any]:
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"must be a dict, as in {{'steps': 20}}, not {named(value)}")
        return {name: _plain(each) for name, each in (value or {}).items()}


def _plain(value: Any) -> Any:
    """Of NumPy's scalars Python's own; of a float32 the shortest decimal that is the same float32."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Flag(Check):
    """True or False, or one of `words`."""

    words: tuple[str, ...] = ()

    def __call__(self, value: Any) -> bool | str:
        if isinstance(value, str) and value in self.words:
            return value
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        choices = ", ".join(["True", *(["False"] if self.words else [])])
        *_, last = map(repr, self.words or (False,))
        raise InputError(f"must be {choices} or {last}, not {named(value)}")


@dataclass(frozen=True)
class RecipeLike(Check):
    """A recipe: its name, its file or its fields."""

    def __call__(self, value: Any) -> str | Path | Recipe:
        if not isinstance(value, (str, Path, Recipe)):
            raise InputError(f"must be a name, a YAML file or a Recipe, not {named(value)}")
        return value


def named(value: Any) -> str:
    """What was given, in a word or two: a tensor's digits would say nothing."""
    if value is None or isinstance(value, (str, Real)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
