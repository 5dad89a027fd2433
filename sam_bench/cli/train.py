"""`sam-bench train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.speaking import speaks
from sam_bench.errors import StoppedError
from sam_bench.perturb.ball import USUAL_EPS
from sam_bench.records import Augmentation, Radius, Recipe
from sam_bench.zoo import full_name

_SETTINGS: dict[str, Any] = {
    name: [(method, field) for _, method, field in owners] for name, owners in api.settings_of_methods().items()
}
_SETTINGS |= {name: [("augmentation", field)] for name, field in Augmentation.model_fields.items()}
_SETTINGS |= {name: [("every recipe", Recipe.model_fields[name])] for name in ("epochs", "batch_size")}


def _parts(function: Any) -> Any:
    for part, names in reversed(api.methods_by_part().items()):
        text = f"Replace the recipe's {part}: {', '.join(names)}."
        function = click.option(f"--{part}", metavar="METHOD", help=text)(function)
    return function


class _Eps(click.ParamType):  # generic only in newer versions of click than we ask for
    name = "eps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Radius:
        try:
            return Radius(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("train")
@click.option(
    "--recipe", default="standard", show_default=True, help="standard, sam, at, …, or a YAML file; see `recipes list`."
)
@click.option(
    "--faithful", is_flag=True, help="The published code's settings where the recipe's differ; see `recipes show`."
)
@click.option(
    "--dataset",
    default="cifar10",
    show_default=True,
    help="cifar10, cifar100, svhn, digits, FILE.npz or FOLDER.",
)
@click.option("--arch", default="preactresnet18", show_default=True, help="An architecture of ours, or timm:NAME.")
@click.option("--width", type=int, help="Channels of the first stage (ours).  [default: 64]")
@click.option("--arch-option", multiple=True, metavar="KEY=VALUE", help="Any other option of the architecture.")
@click.option(
    "--name", help="Name in the zoo.  [default: made of recipe, perturbations, architecture and a seed other than 0]"
)
@click.option(
    "--limit-train",
    type=int,
    help="Train on the first so many images only, for a quick look; of a FOLDER, of every class in turn.",
)
@click.option(
    "--validation",
    type=int,
    help="Training images held out to watch the run; 0: none.  [default: one in 50, at most 1,000]",
)
@click.option(
    "--validation-eps", type=_Eps(), help="Radius of the PGD-10 run on them.  [default: the recipe's, else 2/255]"
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="auto, bf16 or fp32; auto takes bf16 where the device has it natively.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="torch.compile: a minute at the start, faster afterwards; auto: for long runs.",
)
@click.option("--resume", is_flag=True, help="Continue the run of this name where it stopped.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many epochs' checkpoints stay in the run's folder.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="MINUTES",
    help="Write a checkpoint within an epoch, too, when it takes longer than this.",
)
@click.option(
    "--select",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Register the last epoch, or the one with the best robust accuracy on the validation images, as measured.",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "rollback"]),
    default="stop",
    show_default=True,
    help="When the loss is NaN or infinite: stop, or go back to the last checkpoint with half the learning rate.",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(min=1),
    help="Examples a device runs at a time, in training (with BatchNorm two at least) and validation.",
)
@click.option("--sync-ascent", is_flag=True, help="On several devices: ascend along the whole batch's gradient.")
@click.option("--sync-bn", is_flag=True, help="On several devices: BatchNorm over the whole batch.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of checkpoint, log and TensorBoard events.  [default: runs/NAME]",
)
@click.option(
    "--robustbench-dataset",
    type=click.Choice(["cifar10", "cifar100", "imagenet"]),
    help="The RobustBench data set whose inputs and classes a data set of your own shares.",
)
@click.option(
    "--threat", type=click.Choice(["Linf", "L2"]), help="Listed under.  [default: the recipe's norm, else Linf]"
)
@click.option(
    "--weights-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="How the weights are stored; what is stored is what is measured.",
)
@click.option("--authors", default="", help="For the card.")
@click.option("--allow-large-eps", is_flag=True, help="Accept an eps that was probably meant in units of 1/255.")
@common.data_options
@common.seed_option
@common.device_option
@common.zoo_option
@common.quiet_option
@common.json_option
@_parts
@common.setting_options(_SETTINGS)
def command(quiet: bool, as_json: bool, width: int | None, arch_option: tuple[str, ...], **options: Any) -> None:
    """Train a model by a recipe and register it in the zoo.

    Settings of the recipe are replaced by the options that carry a method's name in brackets;
    `sam-bench recipes show NAME` prints what they are otherwise.

    \b
    sam-bench train --recipe sam --rho 0.1 --dataset cifar10
    sam-bench train --recipe at --eps 4/255 --step-size 1/255 --arch timm:vit_tiny_patch16_224
    sam-bench train --recipe my.yaml --dataset images.npz --width 16 --epochs 10
    torchrun --nproc-per-node=4 -m sam_bench train --recipe sam
    """
    arch_options = common.key_values(arch_option, "--arch-option")
    if width is not None:
        arch_options["width"] = width
    settings = common.given_settings(options, [*_SETTINGS, *api.methods_by_part()])
    for name in (*_SETTINGS, *api.methods_by_part()):
        options.pop(name)
    try:
        result = api.train(
            settings=settings,
            arch_options=arch_options,
            reporter=common.reporter(quiet),
            command=common.command_line(),
            **options,
        )
    except StoppedError as error:
        again = common.command_line() if options["resume"] else f"{common.command_line()} --resume"
        error.args = (f"{error}; continue with: {again}",)
        raise
    if not speaks():
        return  # another process of the team says it
    if as_json:
        common.print_json({"card_path": str(result.card_path), "card": result.card.model_dump(mode="json")})
    else:
        card = result.card
        passes = f"{card.cost.passes:.0f} pass{'' if round(card.cost.passes) == 1 else 'es'} per image"
        click.echo(f"{card.name}: clean accuracy {card.clean_accuracy:.2%}, {passes}")
        click.echo(f"next: {shlex.join(_evaluation(result, options))}")


def _evaluation(result: api.TrainResult, options: dict[str, Any]) -> list[str]:
    """The command that attacks the model as a leaderboard asks for: its own threat model, the radius trained with."""
    card = result.card
    namesakes = list(result.card_path.parents[2].glob(f"*/*/{card.name}.json"))
    inputs = card.recipe.inputs.settings
    trained_with = Radius(inputs.get("eps", 0)) if inputs.get("norm") == card.threat else Radius(0)
    following = ["sam-bench", "evaluate", card.name if len(namesakes) == 1 else full_name(card)]
    following += ["--attack", "autoattack"]
    following += ["--norm", card.threat] if card.threat != "Linf" else []
    following += ["--eps", str(trained_with if trained_with > 0 else USUAL_EPS[card.threat])]
    following += ["--allow-large-eps"] if options["allow_large_eps"] else []
    if not api.is_named_dataset(card.dataset):
        following += ["--dataset", options["dataset"]]
    for name, usual in (("data_dir", Path("data")), ("dataset_name", None), ("zoo", None)):
        if options[name] not in (None, usual):
            following += [f"--{name.replace('_', '-')}", str(options[name])]
    return following
