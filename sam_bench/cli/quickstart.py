"""`sam-bench quickstart`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sam_bench.cli import common
from sam_bench.device import choose_device
from sam_bench.quickstart import quickstart


@click.command("quickstart")
@click.option(
    "--folder",
    type=common.FOLDER,
    default=Path("quickstart"),
    show_default=True,
    help="Where everything it makes goes.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Methods at a time, each in a process of its own.  [default: 3; 1 on a GPU]",
)
@common.seed_option
@common.device_option
@common.quiet_option
@common.json_option
def command(folder: Path, workers: int | None, seed: int, device: str, quiet: bool, as_json: bool) -> None:
    """Train standard, SAM and AT on scikit-learn's digits, evaluate, build the leaderboard.

    Real images that come with a dependency, three methods, PGD-20 at 8/255 and 16/255, AutoAttack at
    16/255: about two minutes on two cores. Run again, it continues where it stopped.
    """
    started = time.monotonic()
    if workers is None:
        # Three on two cores, too: the system shares them out, and no core waits for the longest at the end.
        workers = 3 if choose_device(device)[0].type == "cpu" else 1
    result = quickstart(folder, seed=seed, device=device, reporter=common.reporter(quiet), workers=workers)
    if as_json:
        common.print_json(
            {
                "cards": {name: card.model_dump(mode="json") for name, card in result.cards.items()},
                "robust_accuracy": {
                    name: {f"{record.attack} {record.norm} {record.eps}": record.robust_accuracy for record in records}
                    for name, records in result.records.items()
                },
                "files": [str(path) for path in result.leaderboard.paths.values()],
                "sentences": result.sentences,
            }
        )
        return
    click.echo(result.leaderboard.paths["md"].read_text(encoding="utf-8"))
    for sentence in result.sentences:
        click.echo(sentence)
    click.echo()
    page = result.leaderboard.paths.get("html")
    click.echo(f"The pages start at {page}." if page else result.leaderboard.missing)
    click.echo(f"Everything else is in {folder}/.")
    click.echo(f"It took {time.monotonic() - started:.0f} s. Next, your own data: sam-bench train --help")
