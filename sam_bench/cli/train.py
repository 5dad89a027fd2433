"""`sam-bench train`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.options import (
    Command,
    Option,
    field_options,
    given_fields,
    given_settings,
    part_options,
    setting_options,
    spelled,
)
from sam_bench.cli.speaking import speaks
from sam_bench.errors import StoppedError
from sam_bench.perturb.ball import USUAL_EPS
from sam_bench.records import Augmentation, Radius, Recipe
from sam_bench.training.build import PLAIN
from sam_bench.zoo import full_name

_SETTINGS: dict[str, Any] = {
    **api.settings_of_methods(),
    **{name: [("augmentation", "augmentation", field)] for name, field in Augmentation.model_fields.items()},
    **{name: [("optimizer", "every recipe", Recipe.model_fields[name])] for name in PLAIN},
}
_MOST_USED = {"epochs": 4, "rho": 5, "eps": 6}


def spec_of(options: dict[str, Any]) -> api.TrainSpec:
    """The spec that the values of the options amount to."""
    fields = given_fields(api.TrainSpec, options)
    arch_options = common.key_values(options["arch_options"], "--arch-option")
    if options["width"] is not None:
        arch_options["width"] = options["width"]
    settings = given_settings(options, [*_SETTINGS, *api.methods_by_part()])
    return api.TrainSpec(**fields, arch_options=arch_options, settings=settings)


@click.command(
    "train",
    cls=Command,
    params=[
        *field_options(api.TrainSpec, called={"settings": ""}),
        Option(
            ["--width"],
            heading="Model",
            type=int,
            help="Channels of the first stage (ours), default 64; of wideresnet the factor, default 10.",
        ),
        *part_options(api.methods_by_part()),
        *setting_options(_SETTINGS, first=_MOST_USED),
    ],
)
@common.quiet_option
@common.json_option
def command(quiet: bool, as_json: bool, **options: Any) -> None:
    """Train a model by a recipe and register it in the zoo.

    Settings of the recipe are replaced by the options that carry a method's name in brackets;
    `sam-bench recipes show NAME` prints what they are otherwise.

    \b
    sam-bench train --recipe sam --rho 0.1 --dataset cifar10
    sam-bench train --recipe at --eps 4/255 --step-size 1/255 --arch timm:vit_tiny_patch16_224
    sam-bench train --recipe my.yaml --dataset images.npz --width 16 --epochs 10
    torchrun --nproc-per-node=4 -m sam_bench train --recipe sam
    """
    spec = spec_of(options)
    try:
        result = api.train(spec, reporter=common.reporter(quiet), command=common.command_line())
    except StoppedError as error:
        again = common.command_line() if spec.resume else f"{common.command_line()} --resume"
        error.args = (f"{error}; continue with: {again}",)
        raise
    except KeyboardInterrupt as error:
        way = "add `resume=True` to the same command to continue from the last checkpoint"
        raise StoppedError(f"interrupted; {way}") from error
    if not speaks():
        return  # another process of the team says it
    if as_json:
        common.print_json({"card_path": str(result.card_path), "card": result.card.model_dump(mode="json")})
    else:
        card = result.card
        passes = f"{card.cost.passes:.0f} pass{'' if round(card.cost.passes) == 1 else 'es'} per image"
        click.echo(f"{card.name}: clean accuracy {card.clean_accuracy:.2%}, {passes}")
        click.echo(f"next: {shlex.join(_evaluation(result, spec))}")


def _evaluation(result: api.TrainResult, spec: api.TrainSpec) -> list[str]:
    """The command that attacks the model as a leaderboard asks for: its own threat model, the radius trained with."""
    card = result.card
    namesakes = list(result.card_path.parents[2].glob(f"*/*/{card.name}.json"))
    inputs = card.recipe.inputs.settings
    trained_with = Radius(inputs.get("eps", 0)) if inputs.get("norm") == card.threat else Radius(0)
    following = ["sam-bench", "evaluate", card.name if len(namesakes) == 1 else full_name(card)]
    following += ["--attack", "autoattack"]
    following += ["--norm", card.threat] if card.threat != "Linf" else []
    following += ["--eps", str(trained_with if trained_with > 0 else USUAL_EPS[card.threat])]
    following += ["--allow-large-eps"] if spec.allow_large_eps else []
    if not api.is_named_dataset(card.dataset):
        following += ["--dataset", spec.dataset]
    for name in ("data_dir", "dataset_name", "zoo"):
        if getattr(spec, name) != type(spec).model_fields[name].default:
            following += [spelled(name), str(getattr(spec, name))]
    return following
