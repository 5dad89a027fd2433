"""The table that `sam-bench recommend` reads, from committed cards and records.

    python benchmarks/measured_points.py benchmarks/results/what-they-buy-w8 benchmarks/results/wei2023-tiny .

Every folder holds a `model_zoo`, and records in `leaderboards` or `evaluations`, or both in a `results.tar.xz`. The
first folder has the most methods and decides the attacks and radii. No number is typed. Run it again when a folder
has changed or another one has come.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from sam_bench.analysis import NamedRecord
from sam_bench.analysis.families import STANDARD
from sam_bench.api.analyzing import named_records
from sam_bench.records import ModelCard, write_atomic
from sam_bench.studies.measured_points import MeasuredPoint, measured_points
from sam_bench.studies.packing import unpacked
from sam_bench.zoo import Zoo

TABLE = Path(__file__).parents[1] / "sam_bench/studies/measured_points.json"
# What all methods of a folder have in common, or what decides no result.
_SHARED = {
    *("dataset", "width", "epochs", "batch-size", "limit-train", "validation", "compile", "precision", "seed"),
    *("weights-dtype", "name", "resume", "robustbench-dataset", "quiet", "device"),
}


def method_settings(card: ModelCard) -> dict[str, Any]:
    """The settings in a card's command that make its method: `{"recipe": "sam", "rho": 0.2}`."""
    words = shlex.split(card.command)[2:]
    found = {}
    for place, word in enumerate(words):
        if word.startswith("--") and word[2:] not in _SHARED:
            value = words[place + 1]
            found[word[2:].replace("-", "_")] = float(value) if value.replace(".", "", 1).isdigit() else value
    return found


def table(folders: list[Path]) -> dict[str, Any]:
    """The file's content."""
    rows: list[MeasuredPoint] = []
    for folder in folders:
        with unpacked(folder) as files:
            zoo = files / "model_zoo"
            settings = {card.name: method_settings(card) for card in Zoo(zoo).cards()}
            found = measured_points(_records(files, zoo), settings)
        attacks = {_attack(row) for row in rows or found}
        compared = {row.where for row in found if row.family != STANDARD}
        rows += [row for row in found if _attack(row) in attacks and row.where in compared]
    command = " ".join(["python benchmarks/measured_points.py", *map(str, folders)])
    return {"version": 1, "command": command, "rows": [row.model_dump(mode="json") for row in rows]}


def _attack(row: MeasuredPoint) -> tuple[str, str, str]:
    return row.attack, row.norm, str(row.eps)


def _records(folder: Path, zoo: Path) -> list[NamedRecord]:
    """The records whose models are in the zoo; a record that is both an evaluation and an entry's counts once."""
    entries = [path for path in folder.glob("leaderboards/*/*/records/*.json") if path.suffixes == [".json"]]
    paths = sorted(entries) or sorted(folder.glob("evaluations/*/*.json"))
    return [each for each in named_records(list(map(str, paths)), zoo) if each.card]


def as_text(content: dict[str, Any]) -> str:
    """JSON with a row a line."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content["rows"])
    return f'{{"version": 1, "command": {json.dumps(content["command"])}, "rows": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    write_atomic(options.output, as_text(table(options.folders)))
