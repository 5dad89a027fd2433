"""Options that several commands share, and options made from the settings of methods and attacks."""

from __future__ import annotations

import json
import shlex
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic.fields import FieldInfo

from sam_bench.progress import Reporter, make_reporter

F = TypeVar("F", bound=Callable[..., Any])

quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
zoo_option = click.option(
    "--zoo",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the zoo.  [default: $SAM_BENCH_ZOO, else ./model_zoo]",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Decides every random draw.")


def data_options(function: F) -> F:
    """`--data-dir`, `--dataset-name`, `--image-size`."""
    for option in (
        click.option("--image-size", type=int, help="Resize to this many pixels (digits and folders)."),
        click.option("--dataset-name", help="What a data set of your own is called in records."),
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("data"),
            show_default=True,
            help="Where torchvision's data sets are kept.",
        ),
    ):
        function = option(function)
    return function


def setting_options(settings: dict[str, list[tuple[str, FieldInfo]]]) -> Callable[[F], F]:
    """An option for each setting, named and described by the setting itself.

    Args:
        settings: Name of a setting to the methods that have it, each with its field.
    """

    def decorate(function: F) -> F:
        for name in sorted(settings, reverse=True):
            owners = settings[name]
            field = owners[0][1]
            option = f"--{name.replace('_', '-')}"
            text = _described(name, owners)
            if field.annotation is bool:
                decorator = click.option(f"{option}/--no-{option[2:]}", name, default=None, help=text)
            elif typing.get_origin(field.annotation) is tuple:
                decorator = click.option(option, name, default=None, metavar="A,B,…", help=text, callback=_at_commas)
            else:
                decorator = click.option(option, name, default=None, metavar=_metavar(field), help=text)
            function = decorator(function)
        return function

    return decorate


def _described(name: str, owners: list[tuple[str, FieldInfo]]) -> str:
    """What the setting is, for each of the methods that have it; what most of them say comes first."""
    said: dict[str, list[str]] = {}
    for method, field in owners:
        methods = said.setdefault(field.description or name, [])
        if method not in methods:
            methods.append(method)
    ordered = sorted(said.items(), key=lambda each: -len(each[1]))
    return "  ".join(f"{_sentence(text)}  [{', '.join(methods)}]" for text, methods in ordered)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _at_commas(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",")]


def _metavar(field: FieldInfo) -> str:
    annotation = field.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    return "INT" if annotation is int else "NUMBER" if annotation is float else "VALUE"


def given_settings(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: options[name] for name in names if options.get(name) is not None}


def key_values(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """`key=value` pairs as a dictionary; values are read as JSON where they are JSON, else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=option)
        try:
            found[key.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            found[key.replace("-", "_")] = value
    return found


def reporter(quiet: bool) -> Reporter:
    """Progress on stderr, unless quiet."""
    return make_reporter(quiet=quiet)


def command_line() -> str:
    """The command as it was typed, for cards and records; bytes that are no text are written as `\\xff`."""
    return shlex.join(["sam-bench", *sys.argv[1:]]).encode("utf-8", "backslashreplace").decode()


def print_json(content: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))
