"""Options made from the fields of specs and from the settings of methods, and help that groups them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union

import click
from pydantic.fields import FieldInfo

from sam_bench.api.specs import Option as Described
from sam_bench.api.specs import Spec
from sam_bench.api.specs.checks import Place, Positive, Whole
from sam_bench.records import Radius

MOST_USED = "Most used"
HEADINGS = (
    MOST_USED,
    "Run",
    "Data",
    "Model",
    "Attack",
    "Analysis",
    "Inputs",
    "Weights",
    "Optimizer",
    "Device",
    "Output",
)
"""The headings of the help, in order."""

_OF_PARTS = {"objective": "inputs", "averaging": "weights", "schedule": "optimizer", "augmentation": "data"}
"""The heading of a part of a recipe, where it has none of its own name."""


class Option(click.Option):
    """An option with a heading.

    Args:
        declarations: As for `click.Option`.
        heading: Where the help lists it.
        first: Its rank under its heading; 0: after those that have one.
        parts: The parts of a recipe whose setting it is; `attack` for an attack's.
        described: The field of a spec that it was made from.
        attributes: As for `click.Option`.
    """

    def __init__(
        self,
        declarations: list[str],
        *,
        heading: str = "Output",
        first: int = 0,
        parts: Iterable[str] = (),
        described: Described | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(declarations, **attributes)
        self.heading, self.first, self.parts, self.described = heading, first, frozenset(parts), described


class Command(click.Command):
    """A command whose help lists its options under headings."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        # click keeps the help option of the first context, which may have no group above it.
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **attributes)

    def options_by_heading(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """The options under each heading that has any: how one is written, and what it means."""
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        for option in sorted(options, key=lambda each: getattr(each, "first", 0)):
            record = option.get_help_record(ctx)
            if record is not None:
                groups[getattr(option, "heading", "Output")].append(record)
        return {heading: records for heading, records in groups.items() if records}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each heading with its options."""
        for heading, records in self.options_by_heading(ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)


def spelled(name: str) -> str:
    """A field's name as an option."""
    return f"--{name.replace('_', '-')}"


def field_options(
    spec: type[Spec], *, called: Mapping[str, str] | None = None, helps: Mapping[str, str] | None = None
) -> list[click.Parameter]:
    """An option for each field of a spec.

    Args:
        spec: The spec.
        called: What options are called that do not go by the name of their field; an empty name leaves the
            field out.
        helps: Help in the place of the field's own.
    """
    called, helps = called or {}, helps or {}
    return [
        _field_option(
            called.get(name, name),
            name,
            spec.model_fields[name],
            replace(described, help=helps.get(name, described.help)),
        )
        for name, described in spec.options().items()
        if called.get(name, name)
    ]


def _field_option(called: str, name: str, field: FieldInfo, described: Described) -> Option:
    annotation = _plain(field.annotation)
    attributes: dict[str, Any] = {"default": None, "help": described.help, "metavar": described.metavar}
    parts: tuple[str, ...] = ()
    if typing.get_origin(annotation) is Mapping:
        parts = ("attack",) if called.startswith("attack") else (name,)
        attributes |= {"multiple": True, "metavar": "KEY=VALUE"}
        called = called.removesuffix("s")
    elif annotation is bool:
        attributes |= {"is_flag": True, "default": False}
    else:
        check = next((each for each in field.metadata if isinstance(each, (Place, Positive, Whole))), None)
        attributes["type"] = _type(annotation, check)
        if isinstance(check, Whole) and check.words:
            attributes["metavar"] = f"INT|{'|'.join(check.words)}"
        if field.default is not None:
            attributes |= {"default": field.default, "show_default": field.default != ""}
    if described.default:
        attributes["help"] += f"  [default: {described.default}]"
    heading = MOST_USED if described.first else described.group.capitalize()
    return Option(
        [spelled(called), name], heading=heading, first=described.first, parts=parts, described=described, **attributes
    )


def _plain(annotation: Any) -> Any:
    """The type that a value has when it is given."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        kinds = [each for each in typing.get_args(annotation) if each is not type(None)]
        return kinds[0]
    return annotation


def _type(annotation: Any, check: Any) -> click.ParamType | type:
    if typing.get_origin(annotation) is Literal:
        return click.Choice([*map(str, typing.get_args(annotation))])
    if isinstance(check, Place):
        return click.Path(path_type=Path, file_okay=not check.folder, dir_okay=check.folder)
    if isinstance(check, Positive):
        return click.FloatRange(min=0, min_open=True)
    if isinstance(check, Whole):
        return _Number(min=check.least, words=check.words) if check.least is not None else click.INT
    return _Eps() if annotation is Radius else click.STRING


class _Number(click.IntRange):
    """A whole number, or one of some words."""

    def __init__(self, *, min: int, words: tuple[str, ...]) -> None:
        super().__init__(min=min)
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self._words else super().convert(value, param, ctx)


class _Eps(click.ParamType):  # generic only in newer versions of click than we ask for
    name = "eps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Radius:
        try:
            return Radius(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def setting_options(
    settings: Mapping[str, list[tuple[str, str, FieldInfo]]], *, first: Mapping[str, int] = MappingProxyType({})
) -> list[click.Parameter]:
    """An option for each setting, named and described by the setting itself.

    Args:
        settings: Name of a setting to the methods that have it: part of a recipe, method, field.
        first: Settings that stand among the most used options, with their ranks.
    """
    return [_setting_option(name, settings[name], first.get(name, 0)) for name in sorted(settings)]


def _setting_option(name: str, owners: list[tuple[str, str, FieldInfo]], first: int) -> Option:
    field, part = owners[0][2], owners[0][0]
    attributes: dict[str, Any] = {"default": None, "help": _described(name, owners)}
    declarations = [spelled(name), name]
    if field.annotation is bool:
        declarations[0] += f"/--no-{declarations[0][2:]}"
    elif typing.get_origin(field.annotation) is tuple:
        attributes |= {"metavar": "A,B,…", "callback": _at_commas}
    else:
        attributes["metavar"] = _metavar(field)
    heading = MOST_USED if first else _OF_PARTS.get(part, part).capitalize()
    return Option(declarations, heading=heading, first=first, parts={owner for owner, _, _ in owners}, **attributes)


def part_options(names: Mapping[str, list[str]]) -> list[click.Parameter]:
    """An option for each part of a recipe that names a method."""
    return [
        Option(
            [spelled(part), part],
            heading=_OF_PARTS.get(part, part).capitalize(),
            metavar="METHOD",
            help=f"Replace the recipe's {part}: {', '.join(methods)}.",
        )
        for part, methods in names.items()
    ]


def _described(name: str, owners: list[tuple[str, str, FieldInfo]]) -> str:
    """What the setting is, for each of the methods that have it; what most of them say comes first.

    A setting of one method without a name is the command's own, and its default is shown.
    """
    if [method for _, method, _ in owners] == [""]:
        return _with_default(name, owners[0][2])
    said: dict[str, list[str]] = {}
    for _, method, field in owners:
        methods = said.setdefault(field.description or name, [])
        if method not in methods:
            methods.append(method)
    ordered = sorted(said.items(), key=lambda each: -len(each[1]))
    return "  ".join(f"{_sentence(text)}  [{', '.join(methods)}]" for text, methods in ordered)


def _with_default(name: str, field: FieldInfo) -> str:
    value = field.default
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return _sentence(field.description or name) + ("" if value in (None, ()) else f"  [default: {shown}]")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _at_commas(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",")]


def _metavar(field: FieldInfo) -> str:
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    return "INT" if annotation is int else "NUMBER" if annotation is float else "VALUE"


def given_fields(spec: type[Spec], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a spec among the values of a command's options; those that were left out have their defaults."""
    given = {name: options[name] for name in spec.options() if name in options}
    return {name: value for name, value in given.items() if value is not None and not isinstance(value, tuple)}


def given_settings(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: options[name] for name in names if options.get(name) is not None}
