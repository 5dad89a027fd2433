"""`sam-bench recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sam_bench.cli import common
from sam_bench.cli.options import spelled
from sam_bench.errors import InputError
from sam_bench.records import Radius
from sam_bench.studies.measured_points import committed_points
from sam_bench.studies.recommend import Question, Recommendation, recommend
from sam_bench.studies.recommend_sweep import Swept, sweep_for


class _Multiple(click.ParamType):
    name = "multiple"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`2x` and `2` are 2."""
        try:
            return float(str(value).removesuffix("x"))
        except ValueError:
            self.fail(f"{value!r} is no multiple; write 2x for twice the passes of plain training", param, ctx)


@click.command("recommend")
@click.option("--dataset", required=True, help="What you will train on: a name, or a file of your own.")
@click.option(
    "--norm", type=click.Choice(["Linf", "L2"]), default="Linf", show_default=True, help="Norm of the attack."
)
@click.option("--eps", default="1/255", show_default=True, help="Radius of the attack that you care about.")
@click.option(
    "--max-clean-loss",
    type=float,
    default=1.0,
    show_default=True,
    help="Points of clean accuracy that you would give for it.",
)
@click.option(
    "--budget",
    type=_Multiple(),
    default="2x",
    show_default=True,
    metavar="MULTIPLE",
    help="Passes that you have, as a multiple of plain training's.",
)
@click.option("--image-size", type=click.IntRange(1), help="Resize to this many pixels (digits and folders).")
@click.option("--sweep", is_flag=True, help="Also train a few small models on your data, and measure them.")
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True, help="Of each run of the sweep.")
@click.option(
    "--folder",
    type=common.FOLDER,
    default=Path("recommend"),
    show_default=True,
    help="Where the sweep's models and records go.",
)
@common.seed_option
@common.device_option
@common.quiet_option
@common.json_option
def command(dataset: str, image_size: int | None, sweep: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Say which method and setting to start with, and why.

    The answer comes from models that were trained and attacked for this package: small networks in
    short runs on CIFAR-10's images. It is a place to start. With --sweep it also comes from your data.

    \b
    sam-bench recommend --dataset cifar10 --eps 2/255 --max-clean-loss 1.0 --budget 2x
    sam-bench recommend --dataset mine.npz --eps 8/255 --max-clean-loss 10 --budget 11x --sweep
    """
    question = _question(options)
    data = {"dataset": dataset} if image_size is None else {"dataset": dataset, "image_size": image_size}
    answers = {}
    swept = Swept((), ())
    if sweep:
        swept = _swept(question, data, options, quiet=quiet)
        answers["on your data"] = recommend(swept.rows, question)
    try:
        answers["for this package"] = recommend(committed_points(), question)
    except InputError:
        if not sweep:
            raise
    if as_json:
        found = {source: _json(answer, data) for source, answer in answers.items()}
        common.print_json({"answers": found, "failures": swept.failures, "warnings": swept.warnings})
        return
    for source, answer in answers.items():
        _say(source, answer, data)
    for remark in (*swept.failures, *swept.warnings):
        click.echo(f"! {remark}")


def _question(options: Mapping[str, Any]) -> Question:
    try:
        eps = Radius(options["eps"])
    except ValueError as error:
        raise InputError(f": {error}", field="eps", value=options["eps"]) from error
    return Question(options["norm"], eps, options["max_clean_loss"], options["budget"])


def _swept(question: Question, data: Mapping[str, Any], options: Mapping[str, Any], *, quiet: bool) -> Swept:
    shared = {name: options[name] for name in ("epochs", "seed", "device", "folder")}
    return sweep_for(
        question,
        **data,
        **shared,
        limit_train=10_000,
        arch_options={"width": 8},
        n_examples=1000,
        reporter=common.reporter(quiet),
        command=common.command_line(),
    )


def _say(source: str, answer: Recommendation, data: Mapping[str, Any]) -> None:
    click.echo(f"Measured {source}: start with {answer.row.method}.")
    for reason in answer.reasons:
        click.echo(f"  {reason}")
    for alternative in answer.alternatives:
        click.echo(f"  {alternative}")
    for warning in answer.warnings:
        click.echo(f"! {warning}")
    click.echo(f"\n    {_train(answer, data)}\n")


def _train(answer: Recommendation, data: Mapping[str, Any]) -> str:
    """The command that trains the method on the user's data."""
    words = ["sam-bench", "train"]
    for name, value in {**answer.settings, **data}.items():
        words += [spelled(name), f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _json(answer: Recommendation, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "command": _train(answer, data),
        "row": answer.row.model_dump(mode="json"),
        "reasons": answer.reasons,
        "warnings": answer.warnings,
        "alternatives": answer.alternatives,
    }
