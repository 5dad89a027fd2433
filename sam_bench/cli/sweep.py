"""`sam-bench sweep`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.evaluate import command as evaluate
from sam_bench.cli.train import command as train
from sam_bench.errors import InputError, SamBenchError

_OF_A_RUN = {"name", "run_dir", "resume", "quiet", "as_json"}
_THE_SAME = {"arch_option", "zoo", "data_dir", "device", "authors", "dataset_name", "keep", "save_every"}

_NORM = next(option for option in evaluate.params if option.name == "norm")


class _Several(click.ParamType):  # generic only in newer versions of click than we ask for
    name = "several"

    def __init__(self, one: click.ParamType | None, between: str) -> None:
        self._one, self._between = one, between

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if not isinstance(value, str):
            return list(value) if isinstance(value, (list, tuple)) else [value]
        parts = [part.strip() for part in value.split(self._between)]
        if not all(parts):
            self.fail(f"{value!r} has an empty value; put one {self._between!r} between two values", param, ctx)
        if self._one is None:
            return [[each.strip() for each in part.split(",")] for part in parts]
        return [self._one.convert(part, param, ctx) for part in parts]


def _varying(option: click.Option) -> click.Option:
    """The same option of `train`, for a list of values."""
    varying, several = copy.copy(option), option.metavar == "A,B,…"
    metavar = "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.metavar
    varying.metavar = "A,B;C,D;…" if several else f"{metavar or option.type.name.upper()},…"
    varying.type = _Several(None, ";") if several else _Several(option.type, ",")
    varying.callback = None
    return varying


def _options_of_train(function: Callable[..., Any]) -> Callable[..., Any]:
    """`train`'s options: a list of values where a value is asked for, else as they are."""
    options = [each for each in train.params if isinstance(each, click.Option) and each.name not in _OF_A_RUN]
    kept = [each if each.is_flag or each.name in _THE_SAME else _varying(each) for each in options]
    shared = [each for each in evaluate.params if each.name in ("executor", "ray_address")]
    below = getattr(function, "__click_params__", [])
    function.__click_params__ = [*below, *reversed(shared), *reversed(kept)]  # type: ignore[attr-defined]
    return function


@click.command("sweep")
@_options_of_train
@click.option("--attack", help="Attack each model when it is trained, as `evaluate` does.  [default: none]")
@click.option("--attack-norm", type=_NORM.type, default="Linf", show_default=True, help="Its norm.")
@click.option("--attack-eps", help="Its radius, or several: a,b,….  [default: as for `evaluate`]")
@click.option("--attack-setting", multiple=True, metavar="KEY=VALUE", help="A setting of the attack: steps=20.")
@click.option("--n-examples", type=click.IntRange(min=1), help="Attack the first so many test images.  [default: all]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Runs side by side.  [default: 1; with Ray: as many as there is room for]",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs' folders.",
)
@common.quiet_option
@common.json_option
def command(
    quiet: bool,
    as_json: bool,
    arch_option: tuple[str, ...],
    attack_setting: tuple[str, ...],
    attack_norm: Any,
    attack_eps: str | None,
    **options: Any,
) -> None:
    """Train a model for every combination of values, register and, with --attack, attack each.

    Options that take a value in `train` take several here, separated by commas; a setting that is a list of
    its own (--milestones) varies at semicolons; flags and what decides no result are the same for all runs.
    Run the same command again to go on with an interrupted sweep: what is finished is not done again.

    \b
    sam-bench sweep --recipe sam --rho 0.1,0.2,0.4 --seed 0,1,2 --attack pgd --attack-eps 1/255,2/255
    sam-bench sweep --recipe standard,sam,at --dataset cifar10 --executor ray
    """
    names = ("executor", "ray_address", "attack", "n_examples", "workers", "run_dir", "zoo", "data_dir", "device")
    given = {name: options.pop(name) for name in names}
    if given["attack"] is None:
        _refuse_idle_attack_options()
    grid = {name: value if isinstance(value, list) else [value] for name, value in options.items() if value is not None}
    result = api.sweep(
        grid,
        arch_options=common.key_values(arch_option, "--arch-option"),
        attack_settings=common.key_values(attack_setting, "--attack-setting"),
        norm=attack_norm,
        radii=attack_eps,
        reporter=common.reporter(quiet),
        command=common.command_line(),
        **given,
    )
    if as_json:
        common.print_json(api.sweep_as_json(result))
    else:
        for line in _table(result, given["n_examples"]):
            click.echo(line)
    for row in result.failed:
        click.echo(f"{row.name} failed: {row.error}", err=True)
    if result.failed:
        raise SamBenchError(
            f"{len(result.failed)} of {len(result.rows)} runs failed: {', '.join(row.name for row in result.failed)}; "
            "mend what can be mended and run the same command again"
        )


def _refuse_idle_attack_options() -> None:
    """Without --attack nothing is attacked: who gave one of its options would wait for nothing."""
    context = click.get_current_context()
    for name in ("attack_norm", "attack_eps", "attack_setting", "n_examples"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise InputError(
                f"--{name.replace('_', '-')} does nothing without --attack; add --attack pgd, or --attack autoattack"
            )


def _table(result: api.SweepResult, n_examples: int | None) -> list[str]:
    """What varies, what came out, on how many images where not on all; a run that failed says so."""
    radii = list(dict.fromkeys(radius for row in result.rows for radius in row.robust))
    on = ("", "") if n_examples is None or not radii else (" (all)", f" ({n_examples})")
    robust_heads = [f"robust {radius}{on[1]}" for radius in radii]
    head = ["name", *result.varies, f"clean{on[0]}", *robust_heads, "passes", "seconds"]
    lines = [head]
    for row in result.rows:
        cells = [row.name, *(_cell(row.settings[key]) for key in result.varies)]
        if row.error is not None:
            lines.append([*cells, "failed", *("" for _ in head[len(cells) + 1 :])])
            continue
        robust = [f"{row.robust[radius]:.2%}" if radius in row.robust else "" for radius in radii]
        lines.append([*cells, f"{row.clean:.2%}", *robust, f"{row.passes:.0f}", f"{row.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cell(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
