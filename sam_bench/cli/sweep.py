"""`sam-bench sweep`."""

from __future__ import annotations

import copy
from typing import Any

import click

from sam_bench import api
from sam_bench.api.specs.sweep import attack_fields
from sam_bench.cli import common
from sam_bench.cli.options import Command, Option, field_options
from sam_bench.cli.spelling import spelling_of
from sam_bench.cli.train import command as train
from sam_bench.errors import InputError, SamBenchError


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


def _varying(option: Option) -> Option:
    """The same option of `train`, for a list of values."""
    varying, several = copy.copy(option), option.metavar == "A,B,…"
    metavar = "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.metavar
    varying.metavar = "A,B;C,D;…" if several else f"{metavar or option.type.name.upper()},…"
    varying.type = _Several(None, ";") if several else _Several(option.type, ",")
    varying.callback = None
    return varying


_ATTACK = "Attack each model when it is trained, as `evaluate` does.  [default: none]"


def _options() -> list[click.Parameter]:
    """The options of `train`, for lists of values where a sweep may vary them; the attack's; the sweep's own."""
    found: list[click.Parameter] = []
    for each in train.params:
        described = getattr(each, "described", None)
        if not isinstance(each, Option) or (described is not None and described.sweep is None):
            continue  # it is of one run only
        once = each.is_flag or each.multiple or (described is not None and not described.sweep)
        found.append(each if once else _varying(each))
    called = dict.fromkeys(api.EvalSpec.options(), "") | {name: own for own, name in attack_fields().items()}
    for each in field_options(api.EvalSpec, called=called, helps={"attack": _ATTACK}):
        each.name = called[each.name or ""]
        found.append(each)
    attack = next(each for each in found if each.name == "attack")
    assert isinstance(attack, Option)
    attack.default, attack.show_default = None, False
    return [*found, *field_options(api.SweepSpec)]


def spec_of(options: dict[str, Any]) -> api.SweepSpec:
    """The spec that the values of the options amount to."""
    if options["attack"] is None:
        _refuse_idle_attack_options()
    pairs = {
        name: common.key_values(options.pop(name), f"--{name.replace('_', '-').removesuffix('s')}")
        for name in ("arch_options", "attack_settings")
    }
    given = {name: value for name, value in options.items() if value is not None}
    own = {name: given.pop(name) for name in {*api.SweepSpec.options(), *attack_fields()} & given.keys()}
    varying = {name: value for name, value in given.items() if isinstance(value, list)}
    once = {name: [value] for name, value in given.items() if name not in varying}
    return api.SweepSpec.of({**once, **varying}, **own, **pairs)


@click.command("sweep", cls=Command, params=_options())
@common.quiet_option
@common.json_option
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Train a model for every combination of values, register and, with --attack, attack each.

    Options that take a value in `train` take several here, separated by commas; a setting that is a list of
    its own (--milestones) varies at semicolons; flags and what decides no result are the same for all runs.
    Run the same command again to go on with an interrupted sweep: what is finished is not done again.

    \b
    sam-bench sweep --recipe sam --rho 0.1,0.2,0.4 --seed 0,1,2 --attack pgd --attack-eps 1/255,2/255
    sam-bench sweep --recipe standard,sam,at --dataset cifar10 --executor ray
    """
    spec = spec_of(options)
    result = api.sweep(spec, reporter=common.reporter(quiet), command=common.command_line())
    if as_json:
        common.print_json(api.sweep_as_json(result))
    else:
        for line in _table(result, spec.evaluation.n_examples if spec.evaluation else None):
            click.echo(line)
    spell = spelling_of(click.get_current_context().command)
    for row in result.failed:
        click.echo(f"{row.name} failed: {row.failure.render(spell) if row.failure else row.error}", err=True)
    if result.failed:
        raise SamBenchError(
            f"{len(result.failed)} of {len(result.rows)} runs failed: {', '.join(row.name for row in result.failed)}; "
            "fix the cause and run the same command again"
        )


def _refuse_idle_attack_options() -> None:
    """Without --attack nothing is attacked: who gave one of its options would wait for nothing."""
    context = click.get_current_context()
    for name in attack_fields():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise InputError("does nothing without `attack`; add `attack='pgd'`, or `attack='autoattack'`", field=name)


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
