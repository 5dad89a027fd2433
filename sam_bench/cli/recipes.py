"""`sam-bench recipes`."""

from __future__ import annotations

from typing import Any

import click

from sam_bench import api
from sam_bench.cli import common
from sam_bench.cli.groups import Group


@click.group("recipes", cls=Group)
def command() -> None:
    """The training methods that come with sam-bench."""


@command.command("list")
@common.json_option
def list_recipes(as_json: bool) -> None:
    """Every recipe: its point on the two axes, its cost relative to standard training, its source.

    The cost counts forward and backward passes per image and epoch; `objective` and `averaging` are
    named where they are not cross-entropy and none.
    """
    rows = api.list_recipes()
    if as_json:
        common.print_json({"recipes": rows})
        return
    columns = [[row["name"], row["inputs"], row["weights"], _cost(row), _others(row)] for row in rows]
    head = ["recipe", "inputs", "weights", "cost", "also uses"]
    widths = [max(map(len, column)) for column in zip(head, *columns, strict=True)]
    for cells in (head, *columns):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for row in rows:
        names = ", ".join([row["name"], *row["also"]])
        click.echo(f"\n{names}: {row['summary']}\n  good for: {row['good_for']}\n  source: {row['source']}")


def _cost(row: dict[str, Any]) -> str:
    return f"{row['passes']:g}x {row['epochs']} epochs"


def _others(row: dict[str, Any]) -> str:
    usual = {"objective": "cross-entropy", "averaging": "none"}
    return ", ".join(row[part] for part, method in usual.items() if row[part] != method)


@command.command("show")
@click.argument("name")
@click.option(
    "--faithful", is_flag=True, help="With the settings of the published code that we would choose otherwise."
)
@common.json_option
def show_recipe(name: str, faithful: bool, as_json: bool) -> None:
    """The YAML of a recipe, NAME or a file of your own; save it, change it, and give the file to `train --recipe`."""
    if as_json:
        common.print_json(api.load_recipe(name, faithful=faithful).model_dump(mode="json"))
    else:
        click.echo(api.recipe_text(name, faithful=faithful), nl=False)
