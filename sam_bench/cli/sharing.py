"""`sam-bench zoo import`, `add`, `push`, `pull`: models on their way into a zoo and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sam_bench import api
from sam_bench import zoo as zoos
from sam_bench.cli import common

_of_the_card = common.together(
    click.option("--name", required=True, help="What the zoo calls the model."),
    click.option("--dataset", required=True, help="What it was trained on: a name, FILE.npz or FOLDER."),
    click.option(
        "--normalize",
        required=True,
        metavar="none|cifar10|cifar100|imagenet|MEAN/STD",
        help="How its training code normalised images in [0, 1]; numbers as in 0.49,0.48,0.45/0.25,0.24,0.26.",
    ),
    click.option("--threat", type=click.Choice(["Linf", "L2"]), default="Linf", show_default=True),
    click.option("--arch-option", multiple=True, metavar="KEY=VALUE", help="What the network takes: width=16."),
    click.option("--image-size", type=int, help="Resize images to this many pixels."),
    click.option("--additional-data", is_flag=True, help="It was trained on more than the data set's images."),
    click.option("--authors", default="", help="Who made it."),
    click.option("--paper-title", default="", help="Title of its paper."),
    click.option("--paper-link", default="", help="Address of its paper."),
    click.option("--venue", default="Unpublished", show_default=True, help="Where and when it was published."),
    click.option("--license", default="unknown", show_default=True, help="Licence of the weights."),
    common.data_dir_option("Where torchvision's data sets are kept."),
    common.device_option,
    common.zoo_option,
    common.json_option,
)
"""The options of whatever puts a model into the zoo."""

_records_option = click.option(
    "--record",
    "records",
    multiple=True,
    type=common.FILE,
    help="An evaluation of it on its own data set.  [default: all such in evaluations/NAME]",
)


def _put(result: api.ImportResult, as_json: bool) -> None:
    if as_json:
        common.print_json(
            {
                "card": str(result.path),
                "clean_accuracy": result.card.clean_accuracy,
                "normalized": result.normalized,
                "otherwise": result.otherwise,
                "note": result.note,
            }
        )
        return
    if result.note:
        click.echo(f"note: {result.note}", err=True)
    card = result.card
    click.echo(f"{zoos.full_name(card)}: clean accuracy {card.clean_accuracy:.2%} on the test set, card {result.path}")


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    pairs = common.key_values(options.pop("arch_option"), "--arch-option")
    return {**options, "arch_options": pairs, "command": common.command_line()}


@click.command("import")
@click.argument("file", type=common.FILE)
@click.option("--arch", required=True, help="The architecture, as for `train`; timm:NAME works too.")
@_of_the_card
def import_model(file: Path, as_json: bool, **options: Any) -> None:
    """Put weights that others trained into the zoo: FILE holds a state dict, as .pt or .safetensors.

    No code in the file is run. Clean accuracy is measured on the test set, and the normalisation is checked.

    \b
    sam-bench zoo import theirs.pt --arch preactresnet18 --dataset cifar10 --normalize none --name theirs
    """
    _put(api.import_model(file, **_fields(options)), as_json)


@click.command("add")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--weights", required=True, type=common.FILE, help="The network's state dict.")
@_of_the_card
def add_model(factory: str, weights: Path, as_json: bool, **options: Any) -> None:
    """Put a network of your own code into the zoo.

    MODULE is imported, which runs it. Whoever loads the model later names it in SAM_BENCH_CODE=MODULE.

    \b
    sam-bench zoo add mynets:wide --weights wide.pt --dataset cifar10 --normalize cifar10 --name wide
    """
    _put(api.add_model(factory, weights, **_fields(options)), as_json)


@click.command("push")
@click.argument("model", metavar="NAME")
@click.option("--repo", required=True, metavar="USER/REPO", help="On the Hugging Face Hub; made if it is not there.")
@_records_option
@click.option("--private", is_flag=True, help="Make a repository that only you see.")
@click.option("--replace", is_flag=True, help="Let the model replace another one in the repository.")
@common.zoo_option
@common.json_option
def push_model(model: str, repo: str, records: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Put a model on the Hugging Face Hub: weights, card, records, and results that the Hub shows.

    Log in once with `hf auth login`, or set HF_TOKEN.
    """
    address = api.push_model(model, repo, records=records or None, **options)
    if as_json:
        common.print_json({"commit": address})
        return
    click.echo(f"{address}; `sam-bench zoo pull {repo}` fetches it")


@click.command("pull")
@click.argument("repo", metavar="USER/REPO")
@click.option("--name", help="What the zoo calls it.  [default: as on its card]")
@click.option("--revision", help="A commit, tag or branch.  [default: the newest]")
@click.option(
    "--evaluations",
    type=common.FOLDER,
    help="Folder for its records.  [default: evaluations/NAME]",
)
@common.zoo_option
@common.json_option
def pull_model(repo: str, as_json: bool, **options: Any) -> None:
    """Fetch a model from the Hugging Face Hub; it enters the zoo if its checksum is the card's."""
    pulled = api.pull_model(repo, **options)
    if as_json:
        common.print_json({"card": str(pulled.path), "records": [str(path) for path in pulled.records]})
        return
    count = len(pulled.records)
    click.echo(f"{zoos.full_name(pulled.card)}: card {pulled.path}, {count} record{'' if count == 1 else 's'}")


@click.command("export")
@click.argument("model", metavar="NAME")
@click.option(
    "--robustbench",
    "folder",
    required=True,
    metavar="FOLDER",
    type=common.FOLDER,
    help="Where the files for RobustBench go.",
)
@_records_option
@click.option("--authors", help="Who made it, where the card does not say.")
@click.option("--paper-title", help="Title of its paper.")
@click.option("--paper-link", help="Address of its paper.")
@click.option("--venue", help="Where and when it was published.")
@click.option("--additional-data", is_flag=True, help="It was trained on more than the data set's images.")
@click.option("--dataset", help="The model's data, FILE.npz or FOLDER, to hold its records against.")
@common.offline_data_option
@common.zoo_option
@common.json_option
def export_model(model: str, folder: Path, records: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Write what RobustBench wants to be sent: checkpoint, model_info, code, and the text of its issue."""
    done = api.export_robustbench(model, folder, records=records or None, **options)
    files = {name: str(getattr(done, name)) for name in ("checkpoint", "model_info", "snippet", "issue")}
    if as_json:
        common.print_json({**files, "missing": done.missing, "notes": done.submission.notes})
        return
    for note in done.submission.notes:
        click.echo(f"note: {note}", err=True)
    if done.missing:
        click.echo(f"note: RobustBench also asks for {', '.join(done.missing)}, which the card does not say", err=True)
    for condition in done.submission.conditions:
        click.echo(f"{ {True: 'met', False: 'NOT MET', None: 'confirm'}[condition.met]:<8} {condition.text}")
    click.echo(f"written: {', '.join(files.values())}")
