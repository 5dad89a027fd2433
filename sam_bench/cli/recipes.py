"""`sam-bench recipes`."""

from __future__ import annotations

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
    """Every recipe: its point on the two axes, its cost relative to standard training, its source."""
    rows = api.list_recipes()
    if as_json:
        common.print_json({"recipes": rows})
        return
    for row in rows:
        axes = f"inputs {row['inputs']:<6} weights {row['weights']:<6} {row['passes']:>4g}x"
        click.echo(f"{row['name']:<12} {axes}  {row['summary']}")
        click.echo(f"{'':<12} {row['source']}")


@command.command("show")
@click.argument("name")
@common.json_option
def show_recipe(name: str, as_json: bool) -> None:
    """The YAML of a recipe; save it, change it, and give the file to `train --recipe`."""
    if as_json:
        common.print_json(api.load_recipe(name).model_dump(mode="json"))
    else:
        click.echo(api.recipe_text(name), nl=False)
