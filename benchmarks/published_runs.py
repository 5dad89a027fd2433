"""Where our own training runs end: the table that `sam-bench leaderboard verify` holds cards against.

    python benchmarks/published_runs.py benchmarks/results/wei2023-tiny …

Every folder holds a `model_zoo`, or a `results.tar.xz` with one. A run counts if at least three of its seeds are there.
No number is typed. Run it again when a folder has changed or another one has come.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from sam_bench.leaderboard.convergence import PublishedRun, PublishedRuns, run_digest
from sam_bench.records import ModelCard, write_atomic
from sam_bench.studies.packing import unpacked
from sam_bench.zoo import Zoo

TABLE = Path(__file__).parents[1] / "sam_bench/leaderboard/published_runs.json"
DEVIATIONS = 5


def repeated_runs(folders: list[Path]) -> dict[str, list[ModelCard]]:
    """The cards of each run with three seeds or more; those of one seed count once."""
    runs: dict[str, dict[int, ModelCard]] = {}
    for folder in folders:
        with unpacked(folder) as files:
            for card in Zoo(files / "model_zoo").cards():
                runs.setdefault(run_digest(card), {}).setdefault(card.seed, card)
    return {run: list(cards.values()) for run, cards in runs.items() if len(cards) >= 3}


def published(folders: list[Path]) -> PublishedRuns:
    """The file's content."""
    runs = repeated_runs(folders)
    ends = {run: [card.clean_accuracy for card in cards] for run, cards in runs.items()}
    squares = sum((len(end) - 1) * statistics.variance(end) for end in ends.values())
    deviation = math.sqrt(squares / sum(len(end) - 1 for end in ends.values()))
    rows = [
        PublishedRun(
            run=run,
            recipe=runs[run][0].recipe.name,
            seeds=len(end),
            low=round(max(statistics.mean(end) - DEVIATIONS * deviation, 0.0), 4),
            high=round(min(statistics.mean(end) + DEVIATIONS * deviation, 1.0), 4),
        )
        for run, end in ends.items()
    ]
    command = " ".join(["python benchmarks/published_runs.py", *map(str, folders)])
    return PublishedRuns(command=command, runs=tuple(sorted(rows, key=lambda row: (row.recipe, row.low))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    write_atomic(options.output, published(options.folders).model_dump_json(indent=1) + "\n")
