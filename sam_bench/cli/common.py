"""What several commands share: options, `KEY=VALUE` pairs, output."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from sam_bench.progress import Reporter, make_reporter

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
# For commands without a spec. `doctor` is one: it must run where PyTorch cannot be imported, so that no spec can.
zoo_option = click.option("--zoo", type=FOLDER, help="Folder of the zoo.  [default: $SAM_BENCH_ZOO, else ./model_zoo]")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ….")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Decides every random draw.")


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, listed in this order."""

    def decorated(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorated


def data_dir_option(text: str) -> Callable[[F], F]:
    """`--data-dir`, with what a command does there."""
    return click.option("--data-dir", type=FOLDER, default=Path("data"), show_default=True, help=text)


offline_data_option = data_dir_option("Where torchvision's data sets are kept; nothing is downloaded.")


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
