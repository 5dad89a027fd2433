"""What several commands share: options, `KEY=VALUE` pairs, output."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import click

from sam_bench.api.specs import RunSpec
from sam_bench.cli.options import field_options
from sam_bench.progress import Reporter, make_reporter

quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
zoo_option, device_option, seed_option = (
    click.option(*each.opts, default=each.default, show_default=each.show_default, type=each.type, help=each.help)
    for name in ("zoo", "device", "seed")
    for each in field_options(RunSpec)
    if isinstance(each, click.Option) and each.name == name
)


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
