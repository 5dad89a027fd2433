"""`sam-bench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.speaking import speaks

_SETTINGS: dict[str, Any] = api.settings_of_attacks()


@click.command("evaluate")
@click.argument("model")
@click.option("--attack", default="autoattack", show_default=True, help=f"{', '.join(api.attack_names())}.")
@click.option("--norm", type=click.Choice(["Linf", "L2"]), default="Linf", show_default=True, help="Norm of the ball.")
@click.option(
    "--eps",
    default="8/255",
    show_default=True,
    help="Radius of the ball, for inputs in [0, 1]; a,b,…: a curve, on which what is broken stays so.",
)
@click.option("--dataset", help="As for `train`.  [default: the one on the model's card]")
@click.option("--n-examples", type=int, help="The first so many test images.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Examples at a time.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The record's file.  [default: evaluations/MODEL/ATTACK-NORM-EPS….json]",
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted evaluation has found.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes on this machine that share the examples.",
)
@click.option("--save-adversarial", is_flag=True, help="Write the adversarial examples, too (….adversarial.npz).")
@click.option("--allow-large-eps", is_flag=True, help="Accept an eps that was probably meant in units of 1/255.")
@common.data_options
@common.seed_option
@common.device_option
@common.zoo_option
@common.quiet_option
@common.json_option
@common.setting_options(_SETTINGS)
def command(model: str, eps: str, output: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Attack MODEL and write a record with a verdict for every example.

    MODEL is a name in the zoo, a path to a card or checkpoint, robustbench:NAME or timm:NAME.

    \b
    sam-bench evaluate sam-preactresnet18 --attack pgd --eps 1/255,2/255
    sam-bench evaluate sam-preactresnet18 --attack autoattack --eps 1/255 --n-examples 1000
    sam-bench evaluate robustbench:Wong2020Fast --dataset cifar10 --eps 8/255 --n-examples 200
    """
    settings = common.given_settings(options, _SETTINGS)
    for name in _SETTINGS:
        options.pop(name)
    radii = api.parse_radii(eps, options["norm"], allow_large_eps=options["allow_large_eps"])
    if output is not None and len(radii) > 1:
        raise click.UsageError("--output names one file, but --eps gives several radii; leave --output away")
    records = api.evaluate_curve(
        model,
        radii,
        output=output,
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
    if as_json:
        dumped = [record.model_dump(mode="json") for record in records]
        common.print_json(dumped[0] if len(dumped) == 1 else {"records": dumped})
