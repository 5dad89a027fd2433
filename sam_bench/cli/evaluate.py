"""`sam-bench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.speaking import speaks

_SETTINGS: dict[str, Any] = api.settings_of_attacks()
_ATTACKS = [*api.attack_names(), *api.attack_families()]


class _BatchSize(click.IntRange):
    """A number of examples, or `auto`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


@click.command("evaluate")
@click.argument("model")
@click.option("--attack", default="autoattack", show_default=True, help=f"{', '.join(_ATTACKS)}.")
@click.option(
    "--search-precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="What AutoAttack searches in; bf16 is short for --attack autoattack-bf16, which goes under its own name.",
)
@click.option(
    "--screen", is_flag=True, help="Short for --attack autoattack-screen: APGD-CE and APGD-T alone, an upper bound."
)
@click.option(
    "--attack-setting",
    "attack_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting that has no option of its own, as other packages' attacks have; may be given several times.",
)
@click.option(
    "--norm", type=click.Choice(["Linf", "L2", "L1"]), default="Linf", show_default=True, help="Norm of the ball."
)
@click.option(
    "--eps",
    help="Radius of the ball, for inputs in [0, 1]; a,b,…: a curve, on which what is broken stays so.  "
    "[default: 8/255; L2: 0.5; L1: 12]",
)
@click.option("--dataset", help="As for `train`.  [default: the one on the model's card]")
@click.option(
    "--n-examples",
    type=int,
    help="The first so many test images; of every class in turn where they are sorted by it.  [default: all]",
)
@click.option(
    "--batch-size",
    type=_BatchSize(min=1),
    metavar="INT|auto",
    default="auto",
    show_default=True,
    help="Examples at a time; auto: what a GPU has room for, else 128.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The record's file (….json).  [default: evaluations/MODEL/ATTACK-NORM-EPS….json]",
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted evaluation has found.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that share the examples.  [default: 1; with Ray: as many as there is room for]",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the work is done: on this machine, or on a Ray cluster.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="auto or HOST:PORT of a Ray cluster; local: start one here.  [default: $RAY_ADDRESS, else local]",
)
@click.option(
    "--task-size",
    type=click.IntRange(min=1),
    help=f"Examples of a task on Ray, at most.  [default: {api.TASK_SIZE}]",
)
@click.option("--save-adversarial", is_flag=True, help="Write the adversarial examples, too (….adversarial.npz).")
@click.option(
    "--second-opinion",
    is_flag=True,
    help="Run pgd-margin on what the attack left standing, and warn where it breaks more than half a point.",
)
@click.option("--allow-large-eps", is_flag=True, help="Accept an eps that was probably meant in units of 1/255.")
@common.data_options
@common.seed_option
@common.device_option
@common.zoo_option
@common.quiet_option
@common.json_option
@common.setting_options(_SETTINGS)
def command(
    model: str,
    attack: str,
    search_precision: str,
    screen: bool,
    eps: str | None,
    output: Path | None,
    attack_settings: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Attack MODEL and write a record with a verdict for every example.

    MODEL is a name in the zoo, a path to a card or checkpoint, robustbench:NAME or timm:NAME.

    \b
    sam-bench evaluate sam-preactresnet18 --attack pgd --eps 1/255,2/255
    sam-bench evaluate sam-preactresnet18 --attack autoattack --eps 1/255 --n-examples 1000
    sam-bench evaluate sam-preactresnet18 --attack torchattacks:PGD --attack-setting alpha=1/255
    sam-bench evaluate robustbench:Wong2020Fast --dataset cifar10 --eps 8/255 --n-examples 200
    """
    settings = common.given_settings(options, _SETTINGS)
    others = common.key_values(attack_settings, "--attack-setting")
    if twice := sorted(settings.keys() & others.keys()):
        raise click.UsageError(f"--attack-setting {twice[0]} is given by its own option, too; leave one of them")
    settings |= others
    for name in _SETTINGS:
        options.pop(name)
    radii = api.parse_radii(eps, options["norm"], allow_large_eps=options["allow_large_eps"])
    records = api.evaluate_curve(
        model,
        radii,
        output=output,
        attack=_variant(attack, bf16=search_precision == "bf16", screen=screen),
        settings=settings,
        reporter=common.reporter(quiet),
        command=common.command_line(),
        **options,
    )
    if not speaks():
        return  # another process of the team says it
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
                    f"{model}: second opinion {opinion.robust_accuracy:.2%} ({opinion.attack} broke "
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
        raise click.UsageError(f"{options[0]} and {options[1]} do not go together; leave one of them away")
    if attack not in ("autoattack", variant):
        raise click.UsageError(f"{options[0]} is for --attack autoattack, not {attack}; leave it away")
    return variant
