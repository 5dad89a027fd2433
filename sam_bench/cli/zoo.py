"""`sam-bench zoo`."""

from __future__ import annotations

from pathlib import Path

import click

from sam_bench import zoo as zoos
from sam_bench.cli import common
from sam_bench.cli.groups import Group
from sam_bench.cli.sharing import add_model, export_model, import_model, pull_model, push_model
from sam_bench.errors import SamBenchError
from sam_bench.records import ModelCard


@click.group("zoo", cls=Group)
def command() -> None:
    """The models: listed, checked, brought in and given away."""


@command.command("list")
@common.zoo_option
@common.json_option
def list_models(zoo: Path | None, as_json: bool) -> None:
    """Every model: clean accuracy, passes, architecture, and the name timm knows it by."""
    root = zoos.zoo_dir(zoo)
    if as_json:
        cards = zoos.Zoo(root).cards()
        common.print_json({"zoo": str(root), "models": [card.model_dump(mode="json") for card in cards]})
        return
    lines = [
        f"{zoos.full_name(each):<48} clean {each.clean_accuracy:>7.2%}  {_passes(each.passes):>6} passes  "
        f"{each.architecture}, {each.parameters:,} parameters"
        for each in zoos.Zoo(root).listed()
    ]
    click.echo("\n".join(lines) if lines else f"no models in {root}; `sam-bench train` makes one")


@command.command("show")
@click.argument("name")
@common.zoo_option
@common.json_option
def show_model(name: str, zoo: Path | None, as_json: bool) -> None:
    """A model's card, and how timm and RobustBench load it."""
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    card = store.find(name)
    if as_json:
        common.print_json(card.model_dump(mode="json"))
        return
    recipe = card.recipe
    click.echo(f"{zoos.full_name(card)}: {recipe.summary}")
    for label, text in (
        ("card", store.card_path(card)),
        ("weights", f"{store.weights_path(card)} ({card.weights.size:,} bytes, SHA-256 {card.weights.sha256})"),
        ("architecture", f"{card.architecture.name} {card.architecture.options}, {card.parameters:,} parameters"),
        *_training(card),
        ("clean accuracy", f"{card.clean_accuracy:.2%}"),
        ("made by", card.command or "unknown"),
    ):
        click.echo(f"  {label:<15} {text}")
    click.echo("  after `import sam_bench`:")
    click.echo(f"    timm.create_model({zoos.timm_name(card)!r}, pretrained=True)")
    if zoos.robustbench_name(card):
        click.echo(
            f"    robustbench.utils.load_model({zoos.robustbench_name(card)!r}, "
            f"dataset={card.robustbench_dataset or card.dataset!r}, threat_model={card.threat!r})"
        )
    else:
        click.echo(
            f"    RobustBench cannot load it: {card.dataset} is none of its data sets (cifar10, cifar100, imagenet); "
            "one with the same image size and classes is named by `train --robustbench-dataset`"
        )


def _passes(passes: float | None) -> str:
    return "?" if passes is None else f"{passes:.0f}"


def _training(card: ModelCard) -> list[tuple[str, str]]:
    """What is known of how it was trained, with a label each."""
    if card.imported is not None:
        return [("imported from", f"{card.imported.file} (SHA-256 {card.imported.sha256}), for {card.dataset}")]
    return [
        ("trained on", f"{card.train_examples:,} images of {card.dataset}, {card.epochs} epochs, seed {card.seed}"),
        ("cost", f"{card.cost.passes:.0f} passes per image, {card.cost.seconds:.0f} s on {card.cost.device}"),
    ]


@command.command("remove")
@click.argument("name")
@common.zoo_option
def remove_model(name: str, zoo: Path | None) -> None:
    """Delete a model: its card and its weights. Its run, records and entries stay."""
    store = zoos.Zoo(zoos.zoo_dir(zoo))
    card = store.find(name)
    store.remove(card)
    click.echo(f"removed {zoos.full_name(card)} from {store.root}")


@command.command("verify")
@click.argument("names", nargs=-1)
@common.zoo_option
@common.json_option
def verify_models(names: tuple[str, ...], zoo: Path | None, as_json: bool) -> None:
    """Check size, SHA-256, keys, shapes and values of the named models, or of all; exit code 1 if one is damaged."""
    root = zoos.zoo_dir(zoo)
    store = zoos.Zoo(root)
    results: list[dict[str, object]] = []
    if names:
        found = [store.find(name) for name in names]
    else:
        found = []
        for path, card in store.scan():
            if isinstance(card, SamBenchError):
                results.append({"name": str(path), "problems": [str(card)]})
            else:
                found.append(card)
    for card in found:
        results.append({"name": zoos.full_name(card), "problems": [problem.message for problem in store.verify(card)]})
    damaged = [result for result in results if result["problems"]]
    if as_json:
        common.print_json({"zoo": str(root), "models": results})
    else:
        for result in results:
            problems = result["problems"]
            assert isinstance(problems, list)
            click.echo(f"{'ok' if not problems else 'DAMAGED':<8} {result['name']}")
            for problem in problems:
                click.echo(f"{'':<8} {problem}", err=True)
        click.echo(f"{len(results) - len(damaged)} of {len(results)} models in {root} are whole")
    if damaged:
        raise click.exceptions.Exit(1)


for _shared in (import_model, add_model, push_model, pull_model, export_model):
    command.add_command(_shared)
