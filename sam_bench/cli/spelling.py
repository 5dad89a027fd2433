"""How the command line writes a field: `limit_train=1` is `--limit-train 1`, where the command has this option."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable

import click

from sam_bench.errors import in_python


def spelling_of(command: click.Command | None) -> Callable[[str, str | None], str]:
    """How messages of a command write fields: as its options, or plain where it has no such option.

    Args:
        command: The command that failed; None where none was found.
    """
    options = [param for param in command.params if isinstance(param, click.Option)] if command else []

    def spell(name: str, value: str | None) -> str:
        part, _, setting = name.rpartition(".")
        option = _option(options, part, setting)
        if option is not None:
            return _written(option, value)
        pairs = next((each for each in options if each.multiple and part in getattr(each, "parts", ())), None)
        if pairs is None:
            return in_python(name, value)
        return f"{pairs.opts[0]} {setting}{'' if value is None else f'={_shown(value)}'}"

    return spell


def _option(options: list[click.Option], part: str, name: str) -> click.Option | None:
    """The option of a field, or of a setting of this part."""
    for option in options:
        named = option.name == name or name in (each.lstrip("-").replace("-", "_") for each in option.opts)
        parts: frozenset[str] = getattr(option, "parts", frozenset())
        if named and (part in parts or not part or (part == "arch_options" and name == "width")):
            return option
    return None


def _written(option: click.Option, value: str | None) -> str:
    name = option.opts[0]
    if value is None or value == "True":
        return name
    if value == "False":
        return option.secondary_opts[0] if option.secondary_opts else f"no {name}"
    return f"{name} {_shown(value)}"


def _shown(value: str) -> str:
    """A value of Python's source as it is typed."""
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        given = value
    return shlex.quote(",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given))
