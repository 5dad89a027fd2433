"""`sam-bench evaluate`."""

from __future__ import annotations

from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.options import Command, Option, field_options, given_fields, given_settings, setting_options
from sam_bench.cli.speaking import speaks
from sam_bench.records import EvaluationRecord

_SETTINGS: dict[str, Any] = {
    name: [("attack", method, field) for method, field in owners] for name, owners in api.settings_of_attacks().items()
}
_ATTACKS = [*api.attack_names(), *api.attack_families()]

_SHORTHANDS: list[click.Parameter] = [
    Option(
        ["--search-precision"],
        heading="Attack",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        show_default=True,
        help="What AutoAttack searches in; bf16 is short for --attack autoattack-bf16, which goes under its own name.",
    ),
    Option(
        ["--screen"],
        heading="Attack",
        is_flag=True,
        help="Short for --attack autoattack-screen: APGD-CE and APGD-T alone, an upper bound.",
    ),
]


def spec_of(options: dict[str, Any]) -> api.EvalSpec:
    """The spec that the values of the options amount to."""
    fields = given_fields(api.EvalSpec, options)
    settings = given_settings(options, _SETTINGS)
    others = common.key_values(options["settings"], "--attack-setting")
    if twice := sorted(settings.keys() & others.keys()):
        raise click.UsageError(f"--attack-setting {twice[0]} is given by its own option, too; leave one of them")
    fields["attack"] = _variant(fields["attack"], bf16=options["search_precision"] == "bf16", screen=options["screen"])
    return api.EvalSpec(**fields, settings=settings | others)


@click.command(
    "evaluate",
    cls=Command,
    params=[
        click.Argument(["model"]),
        *field_options(
            api.EvalSpec, called={"settings": "attack_settings"}, helps={"attack": f"{', '.join(_ATTACKS)}."}
        ),
        *_SHORTHANDS,
        *setting_options(_SETTINGS),
    ],
)
@common.quiet_option
@common.json_option
def command(model: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Attack MODEL and write a record with a verdict for every example.

    MODEL is a name in the zoo, a path to a card or checkpoint, robustbench:NAME or timm:NAME.

    \b
    sam-bench evaluate sam-preactresnet18 --attack pgd --eps 1/255,2/255
    sam-bench evaluate sam-preactresnet18 --attack autoattack --eps 1/255 --n-examples 1000
    sam-bench evaluate sam-preactresnet18 --attack torchattacks:PGD --attack-setting alpha=1/255
    sam-bench evaluate robustbench:Wong2020Fast --dataset cifar10 --eps 8/255 --n-examples 200
    """
    records = api.evaluate_curve(
        model, spec_of(options), reporter=common.reporter(quiet), command=common.command_line()
    )
    if speaks():  # else another process of the team says it
        _show(model, records, as_json)


def _show(model: str, records: list[EvaluationRecord], as_json: bool) -> None:
    for record in records:
        for warning in record.warnings:
            click.echo(f"warning: {warning}", err=True)
        if not as_json:
            click.echo(
                f"{model}: clean accuracy {record.clean_accuracy:.2%}, robust accuracy {record.robust_accuracy:.2%} "
                f"({record.attack}, {record.norm} {record.eps}, {record.n_examples} examples, {record.seconds:.0f} s)"
            )
            if (opinion := record.second_opinion) is not None:
                click.echo(
                    f"{model}: second attack {opinion.robust_accuracy:.2%} ({opinion.attack} broke "
                    f"{len(opinion.broken)} more, {opinion.seconds:.0f} s)"
                )
    if as_json:
        dumped = [record.model_dump(mode="json", exclude_none=True) for record in records]
        common.print_json(dumped[0] if len(dumped) == 1 else {"records": dumped})


def _variant(attack: str, *, bf16: bool, screen: bool) -> str:
    """The attack that AutoAttack becomes by the options that say how it is searched."""
    options = ["--search-precision bf16"] * bf16 + ["--screen"] * screen
    if not options:
        return attack
    variant = "autoattack-screen" if screen else "autoattack-bf16"
    if len(options) > 1:
        raise click.UsageError(f"{options[0]} and {options[1]} do not go together; leave one out")
    if attack not in ("autoattack", variant):
        raise click.UsageError(f"{options[0]} is for --attack autoattack, not {attack}; leave it out")
    return variant
